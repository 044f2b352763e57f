"""Categories of a converted data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from refine.data.convert.source import SourceClass
from refine.errors import RefineError, did_you_mean, shown
from refine.formats.panoptic_json import PanopticJson
from refine.structures import Categories, Category

Notify = Callable[[str], None]


def make_categories(
    classes: Sequence[SourceClass], stuff: Collection[str], background: str | None, notify: Notify
) -> Categories:
    """Return the categories of a data set.

    Ids of the data set are kept if they are unique and at least 1, since 0 means void in many tools; otherwise
    categories are numbered from 1 in the order of the list. Classes of the same name are merged.

    Args:
        classes: classes in the order of the format.
        stuff: names of the classes that are stuff whatever the format says.
        background: name of the stuff class of unlabelled pixels, added if it is new; None for none.
        notify: called with a one-line note on duplicates, gaps and new ids.

    Raises:
        RefineError: there is no class, or no class has a name in `stuff`.
    """
    if not classes and background is None:
        raise RefineError("the data set has no class; check the format")
    merged = _without_duplicates(classes, notify)
    _check_names(merged, stuff)
    ids = _ids(list(merged.values()), notify)
    categories = [
        Category(
            ids[name],
            name,
            each.isthing and name not in stuff and name != background,
            each.color,  # type: ignore[arg-type]
            each.supercategory,
        )
        for name, each in merged.items()
    ]
    if background is not None and background not in merged:
        categories.append(Category(max(ids.values(), default=0) + 1, background, False))
    return Categories(categories)


def read_categories(path: str, classes: Iterable[SourceClass], background: str | None) -> Categories:
    """Return the categories of another data set, after checking that they contain these classes.

    Raises:
        RefineError: the file cannot be read, or a class is missing, or `background` is missing or a thing.
    """
    categories = PanopticJson(path, needs=("categories",)).categories
    things = {category.name: category.isthing for category in categories}
    missing = [each.name for each in classes if each.name not in things]
    if missing:
        raise RefineError(f"{path}: categories: {_listed(missing)} missing; add them, or leave out --categories")
    if background is not None and things.get(background, True):
        raise RefineError(
            f"{path}: categories: the background {shown(background)} is not a stuff class; give another with "
            f"--background"
        )
    return categories


def _without_duplicates(classes: Sequence[SourceClass], notify: Notify) -> dict[str, SourceClass]:
    merged: dict[str, SourceClass] = {}
    place: dict[str, int] = {}
    folded: dict[str, str] = {}
    for n, each in enumerate(classes):
        if each.name in merged:
            notify(f"classes[{place[each.name]}] and [{n}] are both named {shown(each.name)} and are merged")
            continue
        same = folded.setdefault(each.name.strip().casefold(), each.name)
        if same != each.name:
            notify(f"classes {shown(same)} and {shown(each.name)} differ only in case or blanks and stay separate")
        merged[each.name], place[each.name] = each, n
    return merged


def _check_names(merged: Collection[str], stuff: Collection[str]) -> None:
    unknown = [name for name in stuff if name not in merged]
    if unknown:
        similar = did_you_mean(unknown[0], merged)
        raise RefineError(
            f"--stuff: no class is named {_listed(unknown)}{similar}; the classes are {_listed(merged)}"
        )


def _ids(classes: Sequence[SourceClass], notify: Notify) -> dict[str, int]:
    ids = [each.id for each in classes if each.id is not None]
    if (
        len(ids) < len(classes)
        or len(set(ids)) < len(ids)
        or min(ids, default=1) < 1
        or max(ids, default=1) >= 2**31
    ):
        if ids:
            problem = "repeated" if len(set(ids)) < len(ids) else "missing, below 1 or too large"
            notify(f"some class ids are {problem}; categories are numbered from 1 in the order of the list")
        return {each.name: n for n, each in enumerate(classes, 1)}
    missing = sorted(set(range(1, max(ids, default=0))) - set(ids)) if max(ids, default=0) < 2**16 else []
    if missing:
        notify(f"category ids have gaps ({_listed(map(str, missing))}) and are kept")
    return {each.name: number for each, number in zip(classes, ids, strict=True)}


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
