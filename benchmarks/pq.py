"""Speed of panoptic quality from files: refine, panopticapi and hotcoco on the same images and cores.

    python benchmarks/pq.py --gt val.json --gt-dir val --pred pred.json --pred-dir pred --out pq.json

Images are repeated under new names until there are `--images`. All three use every core (panopticapi a process per
core, hotcoco and refine a thread). They run in turns for `--rounds` rounds, after one to warm up, each in a
separate process that imports nothing else and finds bytecode of all modules, as in any usual installation. Medians
are reported: of reading JSON and PNGs and computing PQ, and of the whole process including start-up. CPU time of
all threads and processes is reported too, because its ratio hardly depends on other load of the machine. Memory is
the peak of the largest process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

COMPETITORS = ("panopticapi", "hotcoco", "refine")


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    from refine.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gt", "gt-dir", "pred", "pred-dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tools", nargs="+", choices=COMPETITORS, default=COMPETITORS, help="(all three)")
    parser.add_argument("--out", type=Path, default=Path("pq.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gt = repeat(args.gt, args.gt_dir, Path(folder, "gt"), args.images)
        pred = repeat(args.pred, args.pred_dir, Path(folder, "pred"), args.images)
        # Where the environment forbids bytecode, each start would compile the sources of NumPy and of refine.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder, "bytecode"))
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in args.tools}
        for number in range(args.rounds + 1):
            for name in args.tools:
                sample = in_process(name, *gt, *pred)
                if number:  # the first round writes bytecode, and compiles refine's loops where none are kept
                    samples[name].append(sample)
    numbers = {
        name: {key: statistics.median(s[key] for s in taken) for key in taken[0]} for name, taken in samples.items()
    }
    base = numbers[args.tools[0]]
    for row in numbers.values():
        row["images_per_s"] = args.images / row["wall_s"]
        for key in ("wall_s", "cpu_s", "process_wall_s", "process_cpu_s"):
            row[f"ratio_{key[:-2]}"] = base[key] / row[key]
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    result = {
        "images": args.images,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "processor": models[0].split(":")[1].strip() if models else platform.processor(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("numpy", "panopticapi-lite", "hotcoco", "llvmlite", "deflate")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "results": numbers,
    }
    write_json(args.out, result, indent=1)
    table = Table(title=f"{args.images} images, {result['processor']}, {result['cores']} cores")
    for heading in ("", "wall s", "×", "CPU s", "×", "images/s", "process s", "×", "CPU s", "×", "MiB", "PQ"):
        table.add_column(heading, justify="right")
    for name, row in numbers.items():
        cells = [name]
        for key in ("wall", "cpu", "images_per_s", "process_wall", "process_cpu"):
            if key == "images_per_s":
                cells.append(f"{row[key]:.0f}")
            else:
                cells += [f"{row[key + '_s']:.3f}", f"{row['ratio_' + key]:.1f}"]
        table.add_row(*cells, f"{row['peak_mib']:.0f}", f"{row['pq']:.12f}")
    Console(width=140).print(table)


def repeat(source: Path, folder: Path, out: Path, count: int) -> tuple[str, str]:
    """Write a data set of `count` images; return the paths of its JSON and its folder."""
    from refine.files import write_json

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


def in_process(name: str, *files: str) -> dict[str, float]:
    """Run `pq_process.py`; return its results, and the times and memory of the process."""
    begin = time.perf_counter()
    script = Path(__file__).with_name("pq_process.py")
    process = subprocess.Popen([sys.executable, script, name, *files], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    keys = ("wall_s", "cpu_s", "pq")
    computing = dict(zip(keys, map(float, output.splitlines()[-1].split()), strict=True))
    whole = {"process_wall_s": wall, "process_cpu_s": usage.ru_utime + usage.ru_stime}
    return computing | whole | {"peak_mib": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
