"""Results of one data set that several runs write, each a part of the images (`refine predict --shard 3/16`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from refine.errors import RefineError
from refine.files import read_json
from refine.formats.image_list import ImageFile
from refine.formats.results.saver import Part, Saver
from refine.formats.stream import Entry, stream_panoptic_json, write_sources
from refine.storage import Location, local_copy, replacing, write_json

if TYPE_CHECKING:
    from refine.structures import Categories

FAILED = "failed.json"
"""Name of the list of images that could not be used, in the folder of results; absent if there are none."""
FOLDER = "shards"
"""Folder below the results that holds the lists of the shards until they are merged."""

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part of the images of a run: the `number`-th, from 1, of `count` parts of almost equal size, in order.

    Attributes:
        number, count: see above.
        images: digest of the list of all images, which must be the same for all shards; see `identify`.
    """

    number: int
    count: int
    images: str = ""

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse NUMBER/COUNT; raise ValueError if it is anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(text)
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    def identify(self, images: Iterable[ImageFile]) -> Shard:
        """Return this shard with the digest of all images of the run, in order, by name and id."""
        digest = hashlib.blake2b(digest_size=8)
        for image in images:
            digest.update(json.dumps([image.name, image.id]).encode())
        return replace(self, images=digest.hexdigest())

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this part of a list."""
        return items[(self.number - 1) * len(items) // self.count : self.number * len(items) // self.count]

    def path(self, out: Location) -> Location:
        """Return the path of the list of this shard's results."""
        return out / FOLDER / f"{self}.jsonl"

    def failures(self, out: Location) -> Location:
        """Return the path of the list of this shard's images that failed."""
        return out / FOLDER / f"{self}.{FAILED}"


@dataclass(frozen=True)
class ShardHead:
    """First line of a shard's list: fields of the JSON, sorted `Saver.names` of its formats, and `Shard.images`."""

    info: dict[str, Any] | None
    categories: list[dict[str, Any]]
    formats: list[str]
    images: str


def write_shard(path: Location, head: ShardHead, entries: Iterable[Entry]) -> None:
    """Write the list of a shard, one line of JSON per result, atomically."""
    with replacing(path) as file:
        for value in chain([asdict(head)], entries):
            file.write((json.dumps(value, allow_nan=False) + "\n").encode())


def read_shard(path: Location) -> tuple[ShardHead, Iterator[Entry]]:
    """Read the first line of a shard's list, and return it with an iterator over the results.

    Raises:
        RefineError: the file is damaged.
    """
    lines = _lines(path)
    try:
        return ShardHead(**next(lines)), lines
    except (TypeError, StopIteration) as error:
        raise RefineError(f"{path}: is damaged; run this shard again") from error


def _lines(path: Location) -> Iterator[Any]:
    with local_copy(path) as copy, copy.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RefineError(f"{path}: is damaged ({error}); run this shard again") from error


def write_joint_files(
    out: Location, savers: Sequence[Saver], entries: Callable[[], Iterable[Entry]], categories: Categories
) -> None:
    """Write the files of `savers` that join all images, part by part."""

    def parts(saver: Saver) -> Iterator[Part]:
        for entry in entries():
            if entry["annotation"]["file_name"].endswith(".png"):  # larger maps have no other files
                (path,) = saver.paths(entry["image"]["file_name"], entry["annotation"]["segments_info"])
                with local_copy(out / path) as copy:
                    yield entry["image"], read_json(copy)

    for saver in savers:
        if saver.joint and saver.join:
            with replacing(out / saver.joint) as file:
                file.writelines(saver.join(parts(saver), categories))


def merge_shards(out: Location, savers: Sequence[Saver]) -> tuple[int, int]:
    """Make OUT/panoptic.json, the joint files and failed.json from the lists of all shards, and remove the lists.

    The files are those of a run without shards. Memory does not depend on the number of images.

    Args:
        out: folder of the results.
        savers: known formats, of which those with joint files named in the shards are used.

    Returns:
        Number of results, and number of images that failed.

    Raises:
        RefineError: there is no shard, a shard is missing, or shards have other settings or lists of images.
    """
    from refine.structures import Categories

    shards = _complete(out)
    heads = [read_shard(shard.path(out))[0] for shard in shards]
    for shard, head in zip(shards, heads, strict=True):
        if head.images != heads[0].images:
            raise RefineError(
                f"{shard.path(out)}: was written for another list of images than {shards[0]}; run all shards again"
            )
        if head != heads[0]:
            raise RefineError(f"{shard.path(out)}: was written with other settings than {shards[0]}; run it again")
    count = 0

    def entries() -> Iterator[Entry]:
        nonlocal count
        count = 0
        for shard in shards:
            for entry in read_shard(shard.path(out))[1]:
                count += 1
                yield entry

    head = heads[0]
    categories = Categories.from_json(head.categories, str(shards[0].path(out)))
    write_joint_files(out, [saver for saver in savers if saver.joint in head.formats], entries, categories)
    write_sources(out, entries)
    stream_panoptic_json(out / "panoptic.json", entries, head.categories, head.info)
    failed = []
    for shard in shards:
        if shard.failures(out).is_file():
            with local_copy(shard.failures(out)) as copy:
                failed += read_json(copy)
    if failed:
        write_json(out / FAILED, failed, indent=1)
    else:
        (out / FAILED).unlink(missing_ok=True)
    for shard in shards:
        shard.path(out).unlink()
        shard.failures(out).unlink(missing_ok=True)
    return count, len(failed)


def shard_lists(out: Location) -> Iterator[tuple[Shard, Location]]:
    """Yield each list of a shard in a folder of results: that of its results, and that of its failures."""
    lists: list[Location] = [*(out / FOLDER).glob("*-of-*.json*")]
    for path in lists:
        if name := re.fullmatch(rf"(\d+)-of-(\d+)\.(jsonl|{FAILED})", path.name):
            yield Shard(int(name[1]), int(name[2])), path


def _complete(out: Location) -> list[Shard]:
    """Return all shards in order; raise RefineError unless each of them is finished."""
    lists = [shard for shard, path in shard_lists(out) if path.suffix == ".jsonl"]
    found = sorted(lists, key=lambda shard: (shard.number, shard.count))
    if not found:
        raise RefineError(f"{out}: holds no finished shard; run refine predict --shard 1/N … N/N first")
    count = found[0].count
    if any(shard.count != count for shard in found):
        raise RefineError(f"{out / FOLDER}: holds shards of runs with different N; remove those of one of them")
    if missing := sorted(set(range(1, count + 1)) - {shard.number for shard in found}):
        listed = ", ".join(f"{n}/{count}" for n in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise RefineError(f"{out}: {len(missing)} of {count} shards are not finished: {listed}; run them again")
    return found
