"""YAML files of configs: refine's own by their names, and the files that a config extends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

import refine
from refine.config import read_yaml
from refine.errors import RefineError

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
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise RefineError(f"{given}: no such config file; check the path, or give a name such as {names}")
    return found[0]


class ConfigFile(ActionConfigFile):
    """Argument action that applies the `base` files of a config in order, then the config itself."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        for content in with_bases(find_config(values)):
            self.apply_config(parser, cfg, self.dest, content)


def with_bases(path: str | Path, seen: tuple[Path, ...] = ()) -> list[str]:
    """Resolve the `base` of a config.

    Args:
        path: YAML file. Its optional field `base` is one path or a list of paths, relative to the file's folder,
            or names (see `find_config`); the file overrides its bases.
        seen: files whose bases led to this one.

    Returns:
        Paths and YAML texts, in the order in which to apply them.

    Raises:
        RefineError: a base is not a path, does not exist, or leads back to itself; or see `read_yaml`.
    """
    path = Path(path)
    if path.resolve() in seen:
        raise RefineError(f"{path}: base: the file is its own base; remove the cycle")
    values = read_yaml(path)
    if not isinstance(values, dict) or "base" not in values:
        return [str(path)]
    names = values.pop("base")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RefineError(f"{path}: base: expected a path or a list of paths, got {names!r}")
    contents = []
    for name in names:
        try:
            base = find_config(name, start=path.parent)
        except RefineError as error:
            raise RefineError(f"{path}: base: {error}") from error
        contents += with_bases(base, (*seen, path.resolve()))
    return [*contents, yaml.safe_dump(values, sort_keys=False)]
