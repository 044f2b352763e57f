"""Categories of models that know only the names of their classes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refine.checkpoint.convert.convert import COCO
from refine.data.ade20k import ADE20K
from refine.data.cityscapes import CATEGORIES as CITYSCAPES
from refine.errors import RefineError, did_you_mean, shown
from refine.files import read_json
from refine.structures import VOID, Categories, Category

ClassMap = Mapping[str, str | None]
"""Name of a model's class → name of a category, or None to drop the class."""

_PLACEHOLDER = re.compile(r"LABEL_\d+|N/A|no[ _-]?object|", re.IGNORECASE)


def read_categories(path: str | Path) -> Categories:
    """Read categories from a JSON: a list of them, or an object such as panoptic JSON with a list `categories`.

    Raises:
        RefineError: the file cannot be read, or a category is invalid.
    """
    content: Any = read_json(path)
    entries: Any = content.get("categories") if isinstance(content, dict) else content
    return Categories.from_json(entries, str(path))


def read_class_map(path: str | Path) -> dict[str, str | None]:
    """Read a `ClassMap` from a JSON object, in which null drops a class.

    Args:
        path: file, or the JSON object itself as text that starts with "{".

    Raises:
        RefineError: the file cannot be read, or it is something else.
    """
    try:
        content: Any = json.loads(str(path)) if str(path).startswith("{") else read_json(path)
    except (ValueError, RecursionError) as error:
        raise RefineError(f"--class-map {path}: is not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict) or not all(isinstance(v, str | None) for v in content.values()):
        raise RefineError(f'{path}: expected an object such as {{"grass": "vegetation", "rug": null}}; correct it')
    return content


def find_categories(
    labels: Sequence[str],
    source: str,
    given: Categories | None = None,
    names: ClassMap | None = None,
) -> tuple[Categories, list[int]]:
    """Return the categories of a model, and the class of each of its labels.

    Args:
        labels: names of the model's classes, in the order of its outputs. Placeholders, such as "LABEL_91" and
            "N/A", that are no categories are dropped.
        source: name of the model, for messages.
        given: all categories; None takes those of COCO, ADE20K or Cityscapes, whichever has all labels.
        names: other names of labels, for `given`.

    Returns:
        The given categories or those known of the labels, and the contiguous class of each label, `VOID` if it is
        dropped.

    Raises:
        RefineError: labels are in no list, so that things and stuff cannot be told apart; or two labels are the
            same category.
    """
    renamed = [(names or {}).get(label, label) for label in labels]
    lists = _known() if given is None else {"the given categories": _by_name(given)}
    missing: dict[str, list[str]] = {}
    fitting: list[list[Category | None]] = []
    for title, known in lists.items():
        found = [None if name is None else known.get(name, known.get(_key(name))) for name in renamed]
        missing[title] = [
            label
            for label, name, category in zip(labels, renamed, found, strict=True)
            if name is not None and category is None and not _PLACEHOLDER.fullmatch(name)
        ]
        if not missing[title] and any(found):
            fitting.append(found)
    if not fitting:
        title = min(missing, key=lambda title: len(missing[title]))
        problem = f"{shown((missing[title] or list(labels))[0])} is not one of {title}"
    elif len({tuple(c is not None and c.isthing for c in found) for found in fitting}) > 1:
        problem = f"its classes, such as {shown(labels[0])}, are things in one list and stuff in another"
    else:
        return _classes(labels, fitting[0], given, source)
    raise RefineError(
        f"{source}: {problem}; give --categories FILE.json with id, name and isthing of every class, or "
        f"--class-map FILE.json with the category name of each class (null drops it)"
    )


def check_used(names: ClassMap, labels: Iterable[str]) -> None:
    """Raise RefineError if a class map renames a class that no model has."""
    known = list(labels)
    unknown = sorted(set(names) - set(known))
    if unknown:
        similar = did_you_mean(unknown[0], known)
        raise RefineError(f"--class-map: no model has the class {shown(unknown[0])}{similar}; correct it")


def _classes(
    labels: Sequence[str], found: Sequence[Category | None], given: Categories | None, source: str
) -> tuple[Categories, list[int]]:
    used: dict[int, str] = {}
    for label, category in zip(labels, found, strict=True):
        if category is not None and used.setdefault(category.id, label) != label:
            raise RefineError(
                f"{source}: {shown(used[category.id])} and {shown(label)} are both {category}; drop or rename one "
                f"(--class-map)"
            )
    categories = given or Categories([category for category in found if category is not None])
    return categories, [VOID if category is None else categories.index(category.id) for category in found]


def _known() -> dict[str, dict[str, Category]]:
    """Return the known lists by title, each a category by name."""
    ade: Any = read_json(ADE20K)
    by_id = {category.id: category for category in Categories.from_json(ade, str(ADE20K))}
    aliases = {entry["alias"]: by_id[entry["id"]] for entry in ade if "alias" in entry}
    return {
        "COCO's categories": _by_name(read_categories(COCO)),
        "ADE20K's categories": _by_name(by_id.values()) | aliases,
        "Cityscapes' categories": _by_name(CITYSCAPES),
    }


def _by_name(categories: Iterable[Category]) -> dict[str, Category]:
    """Return each category by its name, and by the first of several synonyms if no other has it."""
    every = list(categories)
    keys = Counter(_key(category.name) for category in every)
    by_key = {_key(category.name): category for category in every if keys[_key(category.name)] == 1}
    return by_key | {category.name: category for category in every}


def _key(name: str) -> str:
    """Return the first of several synonyms in lower case: "road, route" → "road"."""
    return name.split(",")[0].strip().lower()
