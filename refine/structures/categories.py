"""Categories of a data set, and their contiguous indices."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refine.errors import RefineError

if TYPE_CHECKING:
    import torch

VOID = -1
"""Index of pixels without a label, in every contiguous map; ignored in losses and metrics."""


@dataclass(frozen=True)
class Category:
    """One category of a data set, as COCO panoptic JSON describes it.

    Attributes:
        id: the data set's own id, any positive integer.
        name: what people call it.
        isthing: countable (thing) or amorphous (stuff).
        color: RGB, 0-255, for pictures.
        supercategory: name of the coarse group, or "".
    """

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]
    supercategory: str = ""


class Categories:
    """Ordered categories: things take indices 0..num_things-1, stuff the ones after; `VOID` is -1.

    Inside each group the order is that of the data set's ids, so the same JSON always gives the same
    indices. Dataset ids appear only in files and in `Segment.category_id`; tensors hold indices.

    Args:
        categories: any order; ids and names must be unique.

    Raises:
        RefineError: no category, or an id or a name used twice.
    """

    def __init__(self, categories: Iterable[Category]) -> None:
        self._categories = sorted(categories, key=lambda c: (not c.isthing, c.id))
        if not self._categories:
            raise RefineError("categories: the list is empty; give at least one category")
        for field in ("id", "name"):
            seen = [getattr(c, field) for c in self._categories]
            twice = sorted({v for v in seen if seen.count(v) > 1}, key=str)
            if twice:
                raise RefineError(f"categories: {field} {twice[0]!r} is used twice; make each {field} unique")
        self._index = {c.id: i for i, c in enumerate(self._categories)}
        self.num_things = sum(c.isthing for c in self._categories)

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]], source: str = "categories") -> Categories:
        """Read the `categories` list of a COCO panoptic JSON; missing colours are made up, evenly spread.

        Args:
            entries: mappings with `id`, `name`, `isthing` and optionally `color`, `supercategory`.
            source: file name for error messages.

        Raises:
            RefineError: a field is missing or has the wrong type.
        """
        categories = []
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise RefineError(f"{source}: categories is no list of mappings; give id, name and isthing of each")
        for n, entry in enumerate(entries):
            for field, kind in (("id", int), ("name", str), ("isthing", (int, bool))):
                if not isinstance(entry.get(field), kind):
                    raise RefineError(
                        f"{source}: categories[{n}].{field} is {entry.get(field)!r}; "
                        f"every category needs id (integer), name (text) and isthing (0 or 1)"
                    )
            color = entry.get("color") or _spread_color(n)
            if not (isinstance(color, list | tuple) and len(color) == 3 and all(_is_byte(c) for c in color)):
                raise RefineError(
                    f"{source}: categories[{n}].color is {color!r}; give three numbers 0-255, or leave it out"
                )
            categories.append(
                Category(
                    id=int(entry["id"]),
                    name=entry["name"],
                    isthing=bool(entry["isthing"]),
                    color=(int(color[0]), int(color[1]), int(color[2])),
                    supercategory=str(entry.get("supercategory", "")),
                )
            )
        return cls(categories)

    def to_json(self) -> list[dict[str, Any]]:
        """The `categories` list of a COCO panoptic JSON; `from_json` reads it back equal."""
        return [
            {
                "id": c.id,
                "name": c.name,
                "isthing": int(c.isthing),
                "color": list(c.color),
                "supercategory": c.supercategory,
            }
            for c in self._categories
        ]

    @property
    def num_stuff(self) -> int:
        return len(self._categories) - self.num_things

    def index(self, category_id: int) -> int:
        """Contiguous index of a dataset id; KeyError if unknown."""
        return self._index[category_id]

    def __contains__(self, category_id: object) -> bool:
        return category_id in self._index

    def __getitem__(self, index: int) -> Category:
        """The category with this contiguous index (not dataset id)."""
        return self._categories[index]

    def __len__(self) -> int:
        return len(self._categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._categories)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categories) and self._categories == other._categories

    def __repr__(self) -> str:
        return f"Categories({self.num_things} things, {self.num_stuff} stuff)"

    def palette(self) -> torch.Tensor:
        """Colours by contiguous index: Tensor[len, 3] uint8 RGB."""
        import torch  # files are read without it

        return torch.tensor([c.color for c in self._categories], dtype=torch.uint8)


def _is_byte(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 255


def _spread_color(n: int) -> tuple[int, int, int]:
    """The n-th of a sequence of clearly different colours (golden-ratio hues)."""
    hue = (n * 0.618033988749895) % 1.0
    r, g, b = colorsys.hsv_to_rgb(hue, 0.65 if n % 2 else 0.85, 0.95 if n % 3 else 0.75)
    return round(255 * r), round(255 * g), round(255 * b)
