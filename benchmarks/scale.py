"""Time and memory of merging the lists of results into panoptic.json, and of the loader, with synthetic entries.

python benchmarks/scale.py merge --images 1000 10000 100000
python benchmarks/scale.py loader --images 118000 --workers 0 2 4
python benchmarks/scale.py list

"merge" writes the lists of 8 shards, and joins them as `refine merge` does, in a process of its own. "loader"
writes a panoptic JSON that lists a few small images under many numbers, and reads training batches of it. "list"
measures what the process of `refine predict` keeps per image, and how long it takes to record a result.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SHARDS = 8
CATEGORIES = [
    {"id": n, "name": f"class {n}", "supercategory": "", "isthing": int(n <= 80), "color": [n, n, n]}
    for n in range(1, 134)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge")
    merge.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    merge.add_argument("--segments", type=int, default=12, help="segments per image (12)")
    loader = commands.add_parser("loader")
    loader.add_argument("--images", type=int, default=118_000)
    loader.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    loader.add_argument("--batches", type=int, default=20)
    commands.add_parser("list")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.command == "list":
            print(json.dumps(alone(measure_list, Path(folder))))
        elif options.command == "merge":
            for count in options.images:
                out = Path(folder) / str(count)
                write_shards(out, count, options.segments)
                print(json.dumps({"images": count} | alone(time_merge, out)), flush=True)
        else:
            write_dataset(Path(folder), options.images)
            for workers in options.workers:
                print(
                    json.dumps(
                        {"images": options.images, "workers": workers}
                        | alone(time_loader, Path(folder), workers, options.batches)
                    ),
                    flush=True,
                )


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return what a function returns in a process of its own, which is spawned."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak(who: int = resource.RUSAGE_SELF) -> float:
    """Return the largest resident memory of this process (or of its children) in MiB."""
    return resource.getrusage(who).ru_maxrss / 1024


def entry(number: int, segments: int) -> dict[str, Any]:
    infos = [
        {
            "id": n + 1,
            "category_id": n % 133 + 1,
            "isthing": True,
            "score": 0.98765432 - n / 1000,
            "area": 12345 + number % 1000,
            "bbox": [n, n, 123, 145],
            "iscrowd": 0,
        }
        for n in range(segments)
    ]
    name = f"{number // 1000:06}/{number:012}"
    return {
        "image": {"id": number, "file_name": f"{name}.jpg", "height": 480, "width": 640},
        "annotation": {"image_id": number, "file_name": f"{name}.png", "segments_info": infos},
    }


def write_shards(out: Path, count: int, segments: int) -> None:
    from refine.formats.shards import Shard, ShardHead, write_shard

    for number in range(1, SHARDS + 1):
        shard = Shard(number, SHARDS)
        part = shard.of(range(count))
        write_shard(shard.path(out), ShardHead({}, CATEGORIES, []), (entry(n, segments) for n in part))


def time_merge(out: Path) -> dict[str, Any]:
    from refine.formats.shards import merge_shards

    before, start = peak(), time.perf_counter()
    count, _ = merge_shards(out, [])
    size = (out / "panoptic.json").stat().st_size
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "mib_before": round(before),
        "mib_peak": round(peak()),
        "bytes_per_image": round(size / count),
    }


def measure_list(folder: Path, count: int = 3000) -> dict[str, Any]:
    from refine.formats.image_list import ImageFile
    from refine.formats.result_files import Written
    from refine.formats.writer import PredictionWriter
    from refine.structures.categories import Categories

    tracemalloc.start()
    entries = [entry(n, 12)["image"] for n in range(count)]
    before = tracemalloc.get_traced_memory()[0]
    files = [ImageFile(folder / str(e["file_name"]), e["file_name"], e["id"]) for e in entries]
    writer = PredictionWriter(folder, Categories.from_json(CATEGORIES))
    writer.expect(files)
    writer.begin()
    listed = tracemalloc.get_traced_memory()[0]
    results = [Written(entry(n, 12), []) for n in range(count)]
    held = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    for result in results:
        writer.record(result)
    seconds, after = time.perf_counter() - start, tracemalloc.get_traced_memory()[0]
    memory = listed - before + after - held
    return {"bytes_per_image": round(memory / count), "ms_to_record": round(1000 * seconds / count, 2)}


def write_dataset(folder: Path, count: int) -> None:
    """Write a data set of `count` names of 16 images, with 12 segments each."""
    import cv2

    from refine.formats.id_png import write_png

    random = np.random.default_rng(0)
    ids = (np.arange(120)[:, None] // 40 * 4 + np.arange(160)[None] // 40 + 1).astype(np.int32)
    write_png(folder / "segments/0.png", ids)
    (folder / "images").mkdir()
    for n in range(16):
        cv2.imwrite(str(folder / f"images/{n}.jpg"), random.integers(0, 255, (120, 160, 3), dtype=np.uint8))
    infos = [{"id": n, "category_id": n, "area": 1600, "bbox": [0, 0, 40, 40], "iscrowd": 0} for n in range(1, 13)]
    content = {
        "images": [{"id": n, "file_name": f"{n % 16}.jpg", "height": 120, "width": 160} for n in range(count)],
        "annotations": [{"image_id": n, "file_name": "0.png", "segments_info": infos} for n in range(count)],
        "categories": CATEGORIES,
    }
    (folder / "panoptic.json").write_text(json.dumps(content))


def time_loader(folder: Path, workers: int, batches: int) -> dict[str, Any]:
    from refine.data.coco_panoptic import CocoPanoptic
    from refine.data.config import AugmentConfig
    from refine.data.loader import training_batches

    multiprocessing.set_start_method("fork", force=True)  # as in a run, not as this process was started
    start, before = time.perf_counter(), resident("self")
    dataset = CocoPanoptic(folder / "images", folder / "panoptic.json", folder / "segments")
    opened, memory = time.perf_counter(), resident("self")
    stream = training_batches(dataset, AugmentConfig(short=[120], long=160), 8, workers=workers)
    next(stream)
    first = time.perf_counter()
    own = [private(pid) for pid in children()]
    for _ in range(batches):
        next(stream)
    last = time.perf_counter()
    stream.close()
    return {
        "index_s": round(opened - start, 2),
        "index_mib": round(memory - before),
        "first_batch_s": round(first - opened, 2),
        "images_per_s": round(8 * batches / (last - first), 1),
        "private_mib_per_worker": [round(mib) for mib in own],
    }


def resident(pid: str) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def private(pid: str) -> float:
    """Return the memory in MiB that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def children() -> Iterator[str]:
    """Yield the ids of this process's children."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"PPid:\t{os.getpid()}\n" in status.read_text():
                yield status.parent.name
        except OSError:
            continue


if __name__ == "__main__":
    main()
