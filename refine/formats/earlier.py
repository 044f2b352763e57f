"""Results of an earlier run of which no journal is left."""

from __future__ import annotations

from typing import Any

from refine.errors import RefineError
from refine.files import read_json
from refine.formats.settings import CLASSES, other_settings
from refine.formats.shards import Shard, read_shard
from refine.formats.stream import Entry, read_sources
from refine.storage import Location, local_copy


def earlier_results(out: Location, shard: Shard | None, settings: dict[str, Any]) -> list[Entry]:
    """Return the entries of an existing list of a shard, or else of an existing OUT/panoptic.json.

    Args:
        out: folder of the results.
        shard: the part of the results that this run writes, or None for all.
        settings: settings of this run, with its categories as `CLASSES`.

    Raises:
        RefineError: the results were written with other settings or categories, or for another list of images.
    """

    def check(path: Location, then: dict[str, Any] | None, classes: Any) -> None:
        found = {**(then or {}), CLASSES: classes}
        if found != settings:
            raise other_settings(path, then and found, settings)

    if shard is not None and (path := shard.path(out)).is_file():
        head, entries = read_shard(path)
        check(path, head.info, head.categories)
        if head.images != shard.images:
            raise RefineError(f"{path}: was written for another list of images; run all shards without --resume")
        return list(entries)
    path = out / "panoptic.json"
    if not path.is_file():
        return []
    with local_copy(path) as copy:
        content = read_json(copy)
    match content:
        case {"images": list() as images, "annotations": list() as annotations, "info": dict() as then}:
            check(path, then, content.get("categories"))
            maps = {annotation["image_id"]: annotation for annotation in annotations}
            stamps = read_sources(out)
            return [
                {"image": i, "annotation": maps[i["id"]], "source": stamps.get(i["file_name"])}
                for i in images
                if i["id"] in maps
            ]
    raise other_settings(path, {}, settings)
