"""Mapillary Vistas: 16-bit PNGs of 256 · label + instance number, and a config.json of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from refine.data.convert.source import LabelMap, ReadOptions, Sample, Source, SourceClass, choose_split
from refine.errors import RefineError, shown
from refine.files import read_json
from refine.formats.id_png import read_gray
from refine.formats.runs import Runs

_CONFIGS = ("config.json", "config_v1.2.json", "config_v2.0.json")


def recognise(path: Path) -> bool:
    return any((path / name).is_file() for name in _CONFIGS) and any(path.glob("*/**/instances"))


def read(path: Path, options: ReadOptions) -> Source:
    """List the images of SPLIT/images whose labels lie in SPLIT/instances or SPLIT/vX.Y/instances.

    Labels with `instances` are things; labels that are not evaluated, such as unlabelled, become void. Of several
    versions the newest is used. Ids are positions in the config from 1.

    Raises:
        RefineError: the config is missing or invalid, or a label PNG has no image.
    """
    configs = [path / name for name in _CONFIGS if (path / name).is_file()]
    if not configs:
        raise RefineError(f"{path}: contains no config.json of Mapillary Vistas; give the folder of the data set")
    splits = sorted(p.name for p in path.iterdir() if (p / "images").is_dir() and any(p.rglob("instances")))
    split = path / choose_split(str(path), splits, options.split)
    folder = max(split.glob("**/instances"))
    version = folder.parent.name if folder.parent != split else ""
    config = next((file for file in configs if version and version in file.name), configs[0])
    content = read_json(config)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not all(isinstance(each, dict) for each in labels):
        raise RefineError(f"{config}: labels is {shown(labels)}; expected a list of mappings")
    classes = [_class(each, n, config) for n, each in enumerate(labels)]
    names = [
        each.name if label.get("evaluate", True) else None for each, label in zip(classes, labels, strict=True)
    ]
    samples = []
    for file in sorted(folder.glob("*.png")):
        image = split / "images" / f"{file.stem}.jpg"
        if not image.is_file():
            raise RefineError(f"{image}: no such file, but {file} is its annotation; copy both again")
        samples.append(Sample(image.name, image, file, partial(_read, file, names)))
    evaluated = [each for each, name in zip(classes, names, strict=True) if name is not None]
    return Source(evaluated, samples)


def _class(entry: dict[str, object], n: int, config: Path) -> SourceClass:
    name, color = entry.get("readable") or entry.get("name"), entry.get("color")
    if not isinstance(name, str):
        raise RefineError(f"{config}: labels[{n}]: name is {shown(name)}; expected a string")
    group = str(entry.get("name", "")).partition("--")[0]
    valid = isinstance(color, list) and len(color) == 3 and all(type(c) is int and 0 <= c < 256 for c in color)
    return SourceClass(name, n + 1, bool(entry.get("instances")), tuple(color) if valid else (), group)  # type: ignore[arg-type]


def _read(file: Path, names: Sequence[str | None]) -> LabelMap:
    values = read_gray(file)
    labels = {}
    for value in Runs.from_map(values).areas()[0].tolist():
        if value // 256 >= len(names):
            raise RefineError(f"{file}: label {value // 256} is not in the config; give the config of this version")
        labels[value] = (names[value // 256], False)
    return LabelMap(values, labels)
