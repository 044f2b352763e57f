"""Remapping of the categories of a data set by a small file.

    {"categories": [{"id": 1, "name": "animal", "isthing": 1}, …],
     "map": {"16": 1, "17": 1, "184": null, "201": "stuff"}}

`map` maps each category id of the data set to an id of `categories`; to null, so that its pixels become void and
are ignored in training; or to "stuff", so that its pixels are known to be stuff of an unnamed class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.errors import RefineError, shown
from refine.files import read_json
from refine.structures import VOID, Categories

UNNAMED_STUFF = "stuff"


@dataclass(frozen=True)
class Remap:
    """New categories, and the mapping of the old ones.

    Attributes:
        categories: new categories.
        target: old id -> new id, None for void, or "stuff" for unnamed stuff.
    """

    categories: Categories
    target: dict[int, int | str | None]

    def label(self, category_id: int) -> int:
        """Return the new contiguous class of an old id, VOID, or the number of classes for unnamed stuff."""
        new = self.target[category_id]
        if isinstance(new, str):
            return len(self.categories)
        return VOID if new is None else self.categories.index(new)


def read_remap(path: str | Path, source: Categories) -> Remap:
    """Read a file of category changes for a data set with the categories `source`.

    Args:
        path: path of the file, or "supercategory" to merge the categories of each supercategory.
        source: categories of the data set.

    Raises:
        RefineError: a field is missing, an id is unknown, a category of `source` is not mapped, a stuff category
            is mapped to a thing (its segments are not objects), or a thing to unnamed stuff, or there is unnamed
            stuff but no stuff among the new categories.
    """
    content = supercategory_remap(source) if str(path) == "supercategory" else read_json(path)
    if not isinstance(content, dict):
        content = {}
    if not isinstance(content.get("categories"), list) or not isinstance(content.get("map"), dict):
        raise RefineError(f"{path}: expected `categories` (a list) and `map` (old id -> new id or null)")
    categories = Categories.from_json(content["categories"], str(path))
    target: dict[int, int | str | None] = {}
    for category in source:
        if str(category.id) not in content["map"]:
            raise RefineError(
                f"{path}: map: category {category.id} ({category.name}) is missing; map it to an id or to null"
            )
        new = content["map"][str(category.id)]
        if new == UNNAMED_STUFF:
            if category.isthing:
                raise RefineError(
                    f"{path}: map: {category.id} -> {new!r}: {category.name} is a thing; map it to one or to null"
                )
            if not categories.num_stuff:  # no class could be predicted there
                raise RefineError(
                    f"{path}: map: {category.id} -> {new!r}: `categories` has no stuff that it could be; map it to "
                    f"null, or add a category for it"
                )
            target[category.id] = new
            continue
        if new is not None and (type(new) is not int or new not in categories):
            raise RefineError(f"{path}: map: {category.id} -> {shown(new)}: no such id in `categories`")
        if new is not None and not category.isthing and categories[categories.index(new)].isthing:
            raise RefineError(f"{path}: map: {category.name} is stuff and cannot become the thing {new}")
        target[category.id] = new
    return Remap(categories, target)


def supercategory_remap(categories: Categories) -> dict[str, Any]:
    """Return the content of a remap file that merges each supercategory, things and stuff separately."""
    groups = sorted({(not c.isthing, c.supercategory or c.name) for c in categories})
    ids = {group: n + 1 for n, group in enumerate(groups)}
    return {
        "categories": [{"id": n, "name": name, "isthing": int(not stuff)} for (stuff, name), n in ids.items()],
        "map": {str(c.id): ids[(not c.isthing, c.supercategory or c.name)] for c in categories},
    }
