"""YAML files of configs: refine's own by their names, and the files that a config extends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import refine
from refine.config import read_yaml
from refine.errors import RefineError, did_you_mean, shown

_PACKAGE = Path(refine.__file__).parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Folder of the configs: in the package if it was installed as a wheel, else in the repository."""


def find_config(name: str | Path, start: Path | None = None, folder: bool = False) -> Path:
    """Return a file, or one of refine's own configs by its name.

    Args:
        name: path of a YAML file, or its path in configs/ with or without suffix, such as "coco/refine_r50".
        start: folder that a relative path starts from; None stands for the working directory.
        folder: whether a folder of configs, such as "coco", will do too.

    Raises:
        RefineError: there is no such config.
    """
    given, own = (start or Path()) / name, CONFIGS / name
    found = [path for path in (given, Path(f"{own}.yaml"), own) if path.is_file()]
    found += [path for path in (own, given) if folder and path.is_dir()]
    if not found:
        similar = did_you_mean(str(name), _own_names())
        raise RefineError(
            f"{given}: no such config file{similar}; check the path, or give a name such as "
            f"{', '.join(main_names())}"
        )
    return found[0]


def main_names() -> list[str]:
    """Return the names of refine's own configs that are not in a subfolder."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _own_names() -> list[str]:
    """Return the names of all of refine's own configs."""
    return [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")]


def with_bases(path: str | Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Read a config and the files that its `base` names.

    Args:
        path: YAML file. Its optional field `base` is one path or a list of paths, relative to the file's folder,
            or names (see `find_config`); the file overrides its bases.
        seen: files whose bases led to this one.

    Returns:
        Files with their values, in the order in which to apply them.

    Raises:
        RefineError: a base is not a path, does not exist, or leads back to itself; a file is no mapping; or see
            `read_yaml`.
    """
    path = Path(path)
    if path.resolve() in seen:
        raise RefineError(f"{path}: base: the file is its own base; remove the cycle")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise RefineError(
            f"{path}: expected fields of a config, such as `optim: {{lr: 0.01}}`, got "
            f"{'nothing' if values is None else shown(values)}"
        )
    names = values.pop("base", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RefineError(f"{path}: base: expected a path or a list of paths, got {shown(names)}")
    contents = []
    for name in names:
        try:
            base = find_config(name, start=path.parent)
        except RefineError as error:
            raise RefineError(f"{path}: base: {error}") from error
        contents += with_bases(base, (*seen, path.resolve()))
    return [*contents, (path, values)]
