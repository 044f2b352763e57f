"""Categories of a data set and their contiguous indices."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refine.errors import RefineError, shown

VOID = -1
"""Contiguous index of unlabelled pixels; losses and metrics ignore them."""


@dataclass(frozen=True)
class Category:
    """One category of a data set, as COCO panoptic JSON describes it.

    Two categories are equal if their id, name and isthing are equal; colour and supercategory affect no result.

    Attributes:
        id: category id in the data set, 0 to 2^31 - 1.
        name: category name.
        isthing: True for countable objects (things), False for amorphous regions (stuff).
        color: RGB, 0-255, for drawing; derived from the id if omitted.
        supercategory: name of the coarse group, or "".

    Examples:
        >>> print(Category(id=3, name="nucleus", isthing=True))
        'nucleus' (thing)
    """

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int] = field(default=(), compare=False)  # type: ignore[assignment]
    supercategory: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.color:
            object.__setattr__(self, "color", default_color(self.id))

    def __str__(self) -> str:
        return f"{shown(self.name)} ({'thing' if self.isthing else 'stuff'})"


class Categories:
    """Ordered categories: things have indices 0..num_things-1, stuff follows; `VOID` is -1.

    Within each group, categories are sorted by data-set id, so the same JSON always gives the same
    indices. Data-set ids appear only in files and in `Segment.category_id`; tensors hold indices.

    Args:
        categories: categories in any order; ids and names must be unique.

    Raises:
        RefineError: there is no category, or an id or name is used twice.

    Examples:
        >>> table, fork, cup = Category(9, "table", False), Category(7, "fork", True), Category(2, "cup", True)
        >>> categories = Categories([table, fork, cup])
        >>> [category.name for category in categories]
        ['cup', 'fork', 'table']
        >>> categories.index(7), categories.num_things, 8 in categories
        (1, 2, False)
    """

    def __init__(self, categories: Iterable[Category]) -> None:
        self._categories = sorted(categories, key=lambda c: (not c.isthing, c.id))
        if not self._categories:
            raise RefineError("categories: the list is empty; give at least one category")
        for attribute in ("id", "name"):
            counts = Counter(getattr(c, attribute) for c in self._categories)
            value, count = counts.most_common(1)[0]
            if count > 1:
                raise RefineError(f"categories: {attribute} {shown(value)} is used twice; make each one unique")
        self._index = {c.id: i for i, c in enumerate(self._categories)}
        self.num_things = sum(c.isthing for c in self._categories)

    @classmethod
    def from_json(
        cls,
        entries: Sequence[Mapping[str, Any]],
        source: str = "categories",
        on_error: Callable[[str], None] | None = None,
    ) -> Categories:
        """Read the `categories` list of a COCO panoptic JSON. Missing colours are generated, evenly spread.

        Args:
            entries: mappings with `id`, `name`, `isthing` and optionally `color`, `supercategory`.
            source: file name for error messages.
            on_error: called with the message of each invalid entry, without `source`. If it returns, a default
                replaces the invalid value; entries without a valid id are skipped. None raises.

        Raises:
            RefineError: `entries` is not a list; a field is missing or has the wrong type; an id or name is
                used twice; no valid entry remains.
        """

        def fault(message: str) -> None:
            if on_error is None:
                raise RefineError(f"{source}: {message}")
            on_error(message)

        if not isinstance(entries, list):
            raise RefineError(f"{source}: categories is not a list; give id, name and isthing of each category")
        found: dict[int, Category] = {}
        names: dict[str, int] = {}
        for n, entry in enumerate(entries):
            category = _category(entry, n, found, names, fault)
            if category is not None:
                found[category.id] = category
                names[category.name] = category.id
        if not found:
            raise RefineError(f"{source}: categories: the list is empty; give at least one category")
        return cls(found.values())

    def to_json(self) -> list[dict[str, Any]]:
        """Return the `categories` list of a COCO panoptic JSON; the inverse of `from_json`."""
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
        """Return the contiguous index of a data-set id; raise KeyError if it is unknown."""
        return self._index[category_id]

    def __contains__(self, category_id: object) -> bool:
        return category_id in self._index

    def __getitem__(self, index: int) -> Category:
        """Return the category with this contiguous index (not data-set id)."""
        return self._categories[index]

    def __len__(self) -> int:
        return len(self._categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._categories)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categories) and self._categories == other._categories

    def check_equal(self, other: Categories, where: str, other_where: str) -> None:
        """Raise RefineError if ids, names or isthing differ; order, colours and supercategories do not matter.

        Args:
            other: categories that must equal these.
            where, other_where: names of the two sources, such as files, for the message.
        """
        mine, theirs = ({c.id: c for c in categories} for categories in (self, other))
        for number in [*theirs, *mine]:
            got, expected = theirs.get(number), mine.get(number)
            if got != expected:
                raise RefineError(
                    f"{other_where}: category {number} is {got or 'missing'}, but {expected or 'missing'} in "
                    f"{where}; use data with the same categories, or remap them"
                )

    def __repr__(self) -> str:
        return f"Categories({self.num_things} things, {self.num_stuff} stuff)"


def _category(
    entry: Any, n: int, found: Mapping[int, Category], names: Mapping[str, int], fault: Callable[[str], None]
) -> Category | None:
    """Check entry n of a list of categories against the earlier ones; None if its id is invalid."""
    entry = entry if isinstance(entry, Mapping) else {}
    number, name, isthing = entry.get("id"), entry.get("name"), entry.get("isthing")
    where = f"categories[{n}]"
    if type(number) is not int or not 0 <= number < 2**31:
        fault(f"{where}: id is {shown(number)}; expected an integer")
        return None
    where += f" (id {number})"
    if number in found:
        fault(f"{where}: id {number} is used twice; make ids unique")
    if not isinstance(name, str):
        fault(f"{where}: name is {shown(name)}; expected a string")
        name = f"category {number}"
    elif name in names:
        fault(f"{where}: {shown(name)} is also the name of id {names[name]}; rename one")
        name = f"{name} (id {number})"
    if isthing not in (0, 1):
        isthing_shown = "missing" if isthing is None else shown(isthing)
        fault(f"{where}: isthing is {isthing_shown}; expected 1 (countable) or 0 (stuff)")
    color = entry.get("color") or default_color(n)
    if not (isinstance(color, list | tuple) and len(color) == 3 and all(_is_byte(c) for c in color)):
        fault(f"{where}: color is {shown(color)}; expected [R, G, B] of 0-255, or none")
        color = default_color(n)
    if number in found:
        return None
    supercategory = entry.get("supercategory")
    return Category(
        id=number,
        name=name,
        isthing=isthing in (0, 1) and bool(isthing),
        color=(int(color[0]), int(color[1]), int(color[2])),
        supercategory="" if supercategory is None else str(supercategory),
    )


def _is_byte(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 255


def default_color(n: int) -> tuple[int, int, int]:
    """Return the n-th colour of a sequence of clearly distinct RGB colours (golden-ratio hues)."""
    hue = (n * 0.618033988749895) % 1.0
    r, g, b = colorsys.hsv_to_rgb(hue, 0.65 if n % 2 else 0.85, 0.95 if n % 3 else 0.75)
    return round(255 * r), round(255 * g), round(255 * b)
