"""Start of a prediction: seconds from starting Python to the result of the first image, in fresh processes.

    python benchmarks/start.py cells.png
    python benchmarks/start.py cells.png --trees . ../before --rounds 5

With several trees of this repository, their processes take turns. "torch" imports PyTorch alone, the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = {
    "torch": "import torch",
    "Predictor": "import sys, refine; refine.Predictor(sys.argv[1])(sys.argv[2])",
    "refine predict": "import sys; from refine.cli.main import main; "
    "main(['predict', '--checkpoint', sys.argv[1], sys.argv[2], '-o', sys.argv[3]])",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--checkpoint", default="nuclei", help="model (nuclei)")
    parser.add_argument("--trees", nargs="+", type=Path, default=[Path(__file__).parents[1]], help="(this one)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one to warm up (5)")
    options = parser.parse_args()
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        words = [options.checkpoint, str(options.image.resolve()), folder]
        for number in range(options.rounds + 1):
            for tree in options.trees:
                for name, code in RUNS.items():
                    seconds = timed([sys.executable, "-c", code, *words], tree.resolve())
                    if number:
                        times.setdefault((str(tree), name), []).append(seconds)
    print(f"{'tree':30} {'':15} {'wall s':>7} {'CPU s':>7}")
    for (tree, name), taken in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*taken, strict=True))
        print(f"{tree:30} {name:15} {wall:7.2f} {cpu:7.2f}")
    print(json.dumps([{"tree": t, "run": n, "seconds": s} for (t, n), s in times.items()]))


def timed(command: list[str], tree: Path) -> tuple[float, float]:
    """Run a process in a tree of the repository; return its wall and CPU seconds."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(tree)}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed in {tree}: {command}")
    return wall, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
