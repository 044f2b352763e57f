"""Models chosen by name, one or several combined. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refine.checkpoint.find import find_model

if TYPE_CHECKING:
    import torch

    from refine.networks.native import Precision
    from refine.networks.network import Network


@dataclass(frozen=True)
class ModelChoice:
    """Models by name, which another process can load too; `str` gives the names.

    Attributes:
        instances: models for the instances, at least one; see `find_model`.
        semantic: models for the semantic map; empty stands for those for the instances.
        categories: JSON with the categories of the result, or None.
        class_map: JSON with other names of the models' classes, or None.
        occlusion: folder of an occlusion head for the instances, or None; `load` leaves it to the `Predictor`.
    """

    instances: tuple[str, ...]
    semantic: tuple[str, ...] = ()
    categories: str | None = None
    class_map: str | None = None
    occlusion: str | None = None

    def __str__(self) -> str:
        semantic = f", semantic {' + '.join(self.semantic)}" if self.semantic else ""
        occlusion = f", occlusion {self.occlusion}" if self.occlusion else ""
        return " + ".join(self.instances) + semantic + occlusion

    def find(self) -> None:
        """Find all models, and download what is missing; RefineError if one does not exist."""
        for name in (*self.instances, *self.semantic, *([self.occlusion] if self.occlusion else [])):
            find_model(name)

    def load(
        self,
        device: str | torch.device | None = None,
        precision: Precision = "32",
        compiled: bool = False,
    ) -> Network:
        """Load each model once, and combine them if there are several.

        Args:
            device, precision, compiled: as for `load_network`.

        Raises:
            RefineError: a model or file does not exist or is broken, or their classes do not fit together.
        """
        from refine.networks.compose import Compose
        from refine.networks.hub.categories import read_categories, read_class_map
        from refine.networks.load import load_network

        names = list(dict.fromkeys((*self.instances, *self.semantic)))
        combined = len(self.instances) > 1 or bool(self.semantic)
        categories = read_categories(self.categories) if self.categories else None
        class_map = read_class_map(self.class_map) if self.class_map else None
        networks = {
            name: load_network(
                name,
                device=device,
                precision=precision,
                compiled=compiled,
                categories=categories,
                class_map=class_map,
                combined=combined,
            )
            for name in names
        }
        if not combined:
            return networks[names[0]]
        return Compose(
            [networks[name] for name in self.instances],
            [networks[name] for name in self.semantic or self.instances],
            categories=categories,
            class_map=class_map,
        )
