"""Occlusion heads on the cues mask and label, which serve any network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refine.checkpoint.find import find_model
from refine.checkpoint.folder import OCCLUSION_KIND, load_model
from refine.config import from_mapping, to_mapping
from refine.errors import RefineError, shown
from refine.files import read_json, write_json
from refine.folders import atomic_folder, check_replaceable
from refine.modeling.config import OcclusionConfig
from refine.modeling.occlusion import OcclusionHead
from refine.ops.shapes import shapes_only
from refine.structures import Categories
from refine.tensors import check_shapes, load_weights, read_shapes, write_weights

FORMAT = 1
"""Version of config.json; newer versions are rejected."""

FILES = ("model.safetensors", "config.json")
"""Files of the folder of a head."""


@dataclass
class SavedOcclusion:
    """Occlusion head without features, and the classes that it knows.

    Attributes:
        head: head in evaluation mode on the CPU; its cues do not include features.
        things: names of the thing classes, in the order of the labels.
        training: how the head was trained: network, data, numbers of pairs, options.
    """

    head: OcclusionHead
    things: list[str]
    training: dict[str, Any] = field(default_factory=dict)

    def check_things(self, categories: Categories, source: str, where: str) -> None:
        """Raise RefineError unless the things of a network are those of the head, in the same order.

        Args:
            categories: categories of the network's predictions.
            source, where: names of the head and of the network, for the message.
        """
        names = [category.name for category in categories if category.isthing]
        if names == self.things:
            return
        n = next((n for n, (a, b) in enumerate(zip(self.things, names, strict=False)) if a != b), None)
        if n is None:
            different = f"knows {len(self.things)} thing classes, but {where} has {len(names)}"
        else:
            different = f"has {shown(self.things[n])} as thing class {n + 1}, but {where} has {shown(names[n])}"
        raise RefineError(
            f"{source}: the occlusion head {different}; train one for these classes (`refine train-occlusion`)"
        )


def check_out(folder: str | Path) -> None:
    """Raise RefineError unless `save_occlusion` may write to `folder`: a new one, or that of an earlier head."""
    check_replaceable(folder, FILES)
    config = Path(folder, FILES[1])
    if config.is_file():
        content = read_json(config)
        if not isinstance(content, dict) or content.get("kind") != OCCLUSION_KIND:
            raise RefineError(f"{folder}: {config.name} in it is not that of a head; choose another path")


def save_occlusion(folder: str | Path, saved: SavedOcclusion) -> None:
    """Write config.json and model.safetensors into a new or replaced folder, atomically."""
    description = {
        "format": FORMAT,
        "kind": OCCLUSION_KIND,
        "occlusion": to_mapping(saved.head.config),
        "pool_size": saved.head.pool_size,
        "things": saved.things,
        "training": saved.training,
    }
    with atomic_folder(folder) as temporary:
        write_weights(temporary / FILES[0], saved.head.state_dict())
        write_json(temporary / FILES[1], description, indent=1)


def load_occlusion(source: str | Path) -> SavedOcclusion:
    """Load an occlusion head without features.

    Args:
        source: folder that `save_occlusion` wrote, or name or folder of one of refine's models (see `find_model`)
            whose occlusion head has the cues mask, or mask and label.

    Raises:
        RefineError: there is no such head, a file is damaged, or the head needs features.
    """
    folder = find_model(source)
    if folder.is_dir():
        description: Any = read_json(folder / "config.json")
        if isinstance(description, dict) and description.get("kind") == OCCLUSION_KIND:
            return _load(folder, description)
    saved = load_model(folder)
    head = saved.model.occlusion
    if head is None:
        raise RefineError(f"{source}: has no occlusion head; train one with `refine train-occlusion`")
    _check_cues(head.config, str(source))
    return SavedOcclusion(head, [c.name for c in saved.categories if c.isthing])


def _check_cues(config: OcclusionConfig, source: str) -> None:
    if "feature" in config.cues:
        raise RefineError(
            f"{source}: its occlusion head needs {', '.join(config.cues)}, and only its own network gives these "
            f"features; train a head on mask and label with `refine train-occlusion`"
        )


def _load(folder: Path, description: dict[str, Any]) -> SavedOcclusion:
    path, weights = folder / "config.json", folder / "model.safetensors"
    version = description.get("format")
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise RefineError(f"{path}: format is {shown(version)}, expected {FORMAT}; update refine, or train again")
    things, size = description.get("things"), description.get("pool_size")
    named = isinstance(things, list) and all(isinstance(name, str) for name in things)
    if not named or not things or len(set(things)) < len(things):
        raise RefineError(f"{path}: things is {shown(things)}; expected a list of different class names")
    if type(size) is not int or not 1 <= size <= 256:
        raise RefineError(f"{path}: pool_size is {shown(size)}; expected an integer from 1 to 256")
    training = description.get("training", {})
    config = from_mapping(OcclusionConfig, description.get("occlusion", {}), f"{path}: occlusion")
    _check_cues(config, str(path))
    with shapes_only():  # sizes are compared with the file before memory is allocated
        planned = OcclusionHead(config, 0, len(things), size)
    shapes = {name: tuple(value.shape) for name, value in planned.state_dict().items()}
    check_shapes(shapes, read_shapes(weights), weights)
    head = OcclusionHead(config, 0, len(things), size)
    load_weights(head, weights)
    return SavedOcclusion(head.eval(), things, training if isinstance(training, dict) else {})
