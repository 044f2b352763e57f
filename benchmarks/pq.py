"""Speed of panoptic quality from files: refine, panopticapi and hotcoco on the same images and cores.

    python benchmarks/pq.py --gt val.json --gt-dir val --pred pred.json --pred-dir pred --out pq.json

Images are repeated under new names until there are `--images`. All three use every core (panopticapi a
process for each, hotcoco and refine a thread). They take turns for `--rounds` rounds and the median counts;
start-up (imports, compilation) is outside, reading JSON and PNGs inside. The CPU time of all threads and
processes is given too: unlike the wall clock's, its ratio hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import io
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import hotcoco.panoptic
from panopticapi import evaluation as panopticapi
from rich.console import Console
from rich.table import Table

from refine.evaluation import panoptic_files
from refine.evaluation.png_runs import read_runs
from refine.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gt", "gt-dir", "pred", "pred-dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("pq.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gt = repeat(args.gt, args.gt_dir, Path(folder, "gt"), args.images)
        pred = repeat(args.pred, args.pred_dir, Path(folder, "pred"), args.images)
        numbers = measure(gt, pred, args.rounds)
    base = numbers["panopticapi"]
    for row in numbers.values():
        row["images_per_s"] = args.images / row["wall_s"]
        row["ratio_wall"], row["ratio_cpu"] = base["wall_s"] / row["wall_s"], base["cpu_s"] / row["cpu_s"]
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    result = {
        "images": args.images,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "processor": processor,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("numpy", "panopticapi-lite", "hotcoco", "numba", "deflate")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "results": numbers,
    }
    write_json(args.out, result, indent=1)
    table = Table(
        "", "wall s", "images/s", "× wall", "CPU s", "× CPU", "PQ", title=f"{args.images} images, {processor}"
    )
    for name, row in numbers.items():
        table.add_row(
            name,
            f"{row['wall_s']:.2f}",
            f"{row['images_per_s']:.0f}",
            f"{row['ratio_wall']:.1f}",
            f"{row['cpu_s']:.2f}",
            f"{row['ratio_cpu']:.1f}",
            f"{row['pq']:.12f}",
        )
    Console().print(table)


def repeat(source: Path, folder: Path, out: Path, count: int) -> tuple[str, str]:
    """Write a set of `count` images: (JSON, folder)."""
    content = json.loads(source.read_text())
    annotations = content["annotations"]
    out.mkdir()
    repeated = []
    for n in range(count):
        annotation = annotations[n % len(annotations)]
        name = f"{n:06d}.png"
        shutil.copyfile(folder / annotation["file_name"], out / name)
        repeated.append(annotation | {"image_id": n, "file_name": name})
    images = [{"id": n, "file_name": f"{n:06d}.jpg"} for n in range(count)]
    path = out.with_suffix(".json")
    write_json(path, content | {"annotations": repeated, "images": images})
    return str(path), str(out)


def measure(gt: tuple[str, str], pred: tuple[str, str], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each competitor, and its PQ."""

    def ours(reader: panoptic_files.Reader) -> float:
        with mock.patch.object(panoptic_files, "reader", lambda images: reader):
            return panoptic_files.evaluate_files(*gt, *pred).pq

    def theirs(compute: Callable[..., dict]) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return compute(gt[0], pred[0], gt[1], pred[1])["All"]["pq"]

    competitors: dict[str, Callable[[], float]] = {
        "panopticapi": lambda: theirs(panopticapi.pq_compute),
        "hotcoco": lambda: theirs(hotcoco.panoptic.pq_compute),
        "refine": lambda: ours(read_runs),
        "refine without numba": lambda: ours(panoptic_files.read_png),
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in competitors}
    values = {}
    read_runs(Path(gt[1], "000000.png"))  # compiles
    for _ in range(rounds):
        for name, run in competitors.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            values[name] = run()
            wall = time.perf_counter() - wall
            gc.collect()  # ends panopticapi's processes, so that their time is known
            samples[name].append((wall, cpu_seconds() - cpu))
    return {
        name: {
            "wall_s": statistics.median(wall for wall, _ in taken),
            "cpu_s": statistics.median(cpu for _, cpu in taken),
            "pq": values[name],
        }
        for name, taken in samples.items()
    }


def cpu_seconds() -> float:
    """CPU time of this process and of the ones that it has ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


if __name__ == "__main__":
    main()
