"""Speed of all networks of the paper on one device, with batch size 1 and with the fastest batch size.

    python benchmarks/configs.py --device cuda --out configs.json
    python benchmarks/configs.py configs/coco/refine_r50.yaml --batches 1 --rounds 1

Measured from images in memory to panoptic maps at 800 × 1333, with random weights and 100 detections; REFINE with
its occlusion head, SOE and unknown erasing. The batch size doubles until an image gets less than 3% faster or
memory runs out. Writes OUT and a Markdown table beside it, with the paper's frames per second (Table 2; its device
is not stated, so compare ratios).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from refine.checkpoint.folder import SavedModel
from refine.experiments.cost import Cost, measure_cost, random_model
from refine.experiments.machine import name_machine
from refine.files import write_json, write_text
from refine.structures import Categories
from refine.training.config import load_run

THINGS, CLASSES = 80, 133
WORTH = 0.97
"""The batch size doubles further if the time per image is at most this fraction of the previous one."""
PAPER = {"panoptic_fpn_r101": 10.0, "cascade_panoptic_fpn_r101_dcn": 7.3, "refine_r101_dcn": 5.5}


def build(path: Path) -> SavedModel:
    """Build the network of a config with random weights; REFINE networks get an occlusion head and SOE."""
    config = load_run(path)
    if config.model.ibpp.iterations:
        config = load_run(path, ["--model.occlusion={}", "--eval.method=soe"])
    names = [{"id": n + 1, "name": f"class {n + 1}", "isthing": n < THINGS} for n in range(CLASSES)]
    model = random_model(config.model, THINGS, CLASSES)
    return SavedModel(model, Categories.from_json(names), (800, 1333), config.eval.method, config.eval.fusion)


def measure(path: Path, batches: int | None, **settings: Any) -> dict[int, Cost]:
    """Return the cost by batch size: 1, 2, 4, … until it stops improving, or up to `batches`."""
    results: dict[int, Cost] = {}
    saved, batch = build(path), 1
    while batches is None or batch <= batches:
        try:
            results[batch] = measure_cost(saved, batch=batch, **settings)
        except torch.cuda.OutOfMemoryError:
            break
        if batch > 1 and results[batch].seconds > WORTH * results[batch // 2].seconds:
            break
        batch *= 2
    return results


def row(name: str, results: dict[int, Cost]) -> str:
    best = min(results, key=lambda batch: results[batch].seconds)
    cells = [name, f"{PAPER[name]}" if name in PAPER else ""]
    for batch in (1, best):
        result = results[batch]
        cells += [f"{1 / result.seconds:.2f}", f"{result.memory / 2**30:.1f}"]
    return f"| {' | '.join([*cells[:4], str(best), *cells[4:]])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="config YAMLs (default: all of configs/coco)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--precision", choices=("32", "bf16", "fp16"), default="32", help="(default: 32)")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, help="maximum batch size (default: until it stops improving)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: 10)")
    parser.add_argument("--out", type=Path, default=Path("out/configs.json"), help="(default: out/configs.json)")
    options = parser.parse_args()
    paths = options.configs or [Path("configs/coco", p.name) for p in sorted(Path("configs/models").glob("*.yaml"))]
    lines = ["| network | paper's FPS | FPS, batch 1 | GiB | best batch | FPS | GiB |", "|-|-|-|-|-|-|-|"]
    numbers: dict[str, Any] = {}
    for path in paths:
        settings = {"device": options.device, "precision": options.precision, "size": tuple(options.size)}
        results = measure(path, options.batches, rounds=options.rounds, **settings)
        numbers[path.stem] = {batch: asdict(result) for batch, result in results.items()}
        lines.append(row(path.stem, results))
        print(lines[-1], flush=True)
        write_json(options.out, numbers, indent=1)  # so that results survive a later failure
        machine = results[1].machine
        text = "\n".join([*lines, "", f"{name_machine(machine)}, torch {machine['torch']}, {machine['date']}", ""])
        write_text(options.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
