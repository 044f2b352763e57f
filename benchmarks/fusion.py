"""Speed of fusing 100 instances and 133 classes at 800 × 1333: refine against a plain heuristic.

    python benchmarks/fusion.py --threads 1 --out fusion.json

Both start from the outputs of a network, 28 × 28 masks in boxes and semantic logits at stride 4, and return a
panoptic map. The plain version is Panoptic-FPN's post-processing as its authors describe it, one tensor at a time:
upsample the logits and take the best class, sample each mask at the pixels of its box, paste the masks in order of
decreasing score, then fill in the stuff classes. refine does the same ("heuristic"; the results are compared), or
decides overlapping pairs by equation 7 from a given matrix O ("soe") and erases unknown regions, which also needs
confidences.

All versions run in turns for `--rounds` rounds; medians are reported, of wall time and of the CPU time of the
process, whose ratio hardly depends on other load of the machine. Peak memory is that of a first call in a separate
process (Linux).

    python benchmarks/fusion.py --threads 1 --rounds 3 --instances 100 1000 4000

This measures only how fusion with a given semantic map depends on the number of instances. The boxes shrink as
their number grows, so that masks overlap as often as those of 100 instances.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from refine.experiments.machine import describe_machine
from refine.files import write_json
from refine.fusion import FusionConfig, Method, erase_unknown, fuse
from refine.ops.runs import run_starts
from refine.ops.semantic import semantic_map
from refine.structures import Categories, Category, Instances

SIZE = (800, 1333)
THINGS, CLASSES, DETECTIONS = 80, 133, 100
CATEGORIES = Categories([Category(n + 1, f"c{n}", n < THINGS, (0, 0, 0)) for n in range(CLASSES)])
CONFIG = FusionConfig()


@dataclass
class Case:
    """Outputs of a network for one image."""

    instances: Instances
    logits: Tensor
    occlusion: Tensor


def make_case(noise: float, count: int = DETECTIONS, seed: int = 0) -> Case:
    """Return `count` random instances, and logits.

    The boxes of 100 instances have the sizes of COCO's, masks are blobs, and all scores are above the threshold.
    The logits form patches of classes, whose edges are more ragged with more `noise`.
    """
    g = torch.Generator().manual_seed(seed)
    height, width = SIZE
    sides = (torch.randn(count, 2, generator=g) * 0.8 - 2.1).exp().clamp(0.01, 0.95)
    sides = sides * torch.tensor([width, height]) * (DETECTIONS / count) ** 0.5
    corner = torch.rand(count, 2, generator=g) * (torch.tensor([width, height]) - sides)
    line = torch.linspace(-1, 1, 28)
    bumps = F.interpolate(torch.randn(count, 1, 5, 5, generator=g), size=(28, 28), mode="bicubic")[:, 0]
    blobs = torch.sigmoid(8 * (0.9 - (line[:, None] ** 2 + line**2) + 0.4 * bumps))
    instances = Instances(
        SIZE,
        torch.cat([corner, corner + sides], 1),
        torch.rand(count, generator=g).sort(descending=True).values / 2 + 0.5,
        torch.randint(THINGS, (count,), generator=g),
        roi_masks=blobs,
    )
    h, w = height // 4, -(-width // 4)
    coarse = torch.randn(1, CLASSES, 5, 8, generator=g) * 6
    logits = (
        F.interpolate(coarse, size=(h, w), mode="bilinear")[0] + torch.randn(CLASSES, h, w, generator=g) * noise
    )
    return Case(instances, logits, torch.rand(count, count, generator=g))


def plain(case: Case) -> Tensor:
    """Fuse by the plain heuristic: Tensor[H, W] int64, 0 for void."""
    full = F.interpolate(case.logits[None], scale_factor=4, mode="bilinear", align_corners=False)
    return plain_merge(case, full[0, :, : SIZE[0], : SIZE[1]].argmax(0))


def plain_merge(case: Case, sem_seg: Tensor) -> Tensor:
    """Paste and merge the masks, given the semantic map."""
    masks = plain_paste(case.instances)
    panoptic, count = torch.zeros(SIZE, dtype=torch.int64), 0
    for n in torch.argsort(-case.instances.scores).tolist():
        area, taken = int(masks[n].sum()), int((masks[n] & (panoptic > 0)).sum())
        if area and taken / area <= CONFIG.overlap_threshold:
            count += 1
            panoptic[masks[n] & (panoptic == 0)] = count
    for label in sem_seg.unique().tolist():
        free = (sem_seg == label) & (panoptic == 0)
        if label >= THINGS and int(free.sum()) >= CONFIG.stuff_area:
            count += 1
            panoptic[free] = count
    return panoptic


def plain_paste(instances: Instances) -> Tensor:
    """Sample each mask at the pixels of its box: Tensor[N, H, W] bool."""
    assert instances.roi_masks is not None
    masks = torch.zeros(len(instances), *SIZE, dtype=torch.bool)
    for out, roi_mask, box in zip(masks, instances.roi_masks, instances.boxes, strict=True):
        x1, y1, x2, y2 = box.tolist()
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, SIZE[1]), min(int(y2) + 2, SIZE[0])
        x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2)
        value = F.grid_sample(roi_mask[None, None], grid[None], align_corners=False)
        out[top:bottom, left:right] = value[0, 0] >= 0.5
    return masks


def refined(case: Case, method: Method, erasing: bool) -> Tensor:
    """Fuse by refine, from the logits."""
    sem_seg, confidence = semantic_map(case.logits, SIZE, SIZE)
    return refined_merge(case, sem_seg, confidence, method, erasing)


def refined_merge(case: Case, sem_seg: Tensor, confidence: Tensor, method: Method, erasing: bool) -> Tensor:
    """Fuse by refine, given the semantic map: pasting, decisions, UE and stuff."""
    return fuse(
        case.instances,
        sem_seg,
        categories=CATEGORIES,
        method=method,
        sem_confidence=confidence,
        occlusion=case.occlusion,
        config=FusionConfig(unknown_erasing=erasing),
    ).segment_ids


WHOLE: dict[str, Callable[[Case], Tensor]] = {
    "plain heuristic": plain,
    "refine heuristic": partial(refined, method="heuristic", erasing=False),
    "refine soe + UE": partial(refined, method="soe", erasing=True),
}


def parts(case: Case) -> dict[str, Callable[[], object]]:
    """Return the functions to time by name: the whole fusion, the fusion given the semantic map, and UE alone."""
    sem_seg, confidence = semantic_map(case.logits, SIZE, SIZE)
    radius = CONFIG.radius_at(SIZE)
    return {
        **{name: partial(function, case) for name, function in WHOLE.items()},
        "given map: plain heuristic": partial(plain_merge, case, sem_seg),
        "given map: refine heuristic": partial(refined_merge, case, sem_seg, confidence, "heuristic", False),
        "given map: refine soe": partial(refined_merge, case, sem_seg, confidence, "soe", False),
        "given map: refine soe + UE": partial(refined_merge, case, sem_seg, confidence, "soe", True),
        "UE alone": partial(erase_unknown, sem_seg, confidence, radius, CONFIG.ue_threshold, THINGS),
    }


def by_count(counts: list[int], noise: float) -> dict[str, Callable[[], object]]:
    """Return the functions to time by name: the fusion of so many instances, given the semantic map."""
    functions: dict[str, Callable[[], object]] = {}
    for count in counts:
        case = make_case(noise, count)
        given = semantic_map(case.logits, SIZE, SIZE)
        for method in ("heuristic", "soe"):
            functions[f"{count}, {method}"] = partial(refined_merge, case, *given, method, False)
    return functions


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Run the functions in turns; return median milliseconds of CPU and wall time by name."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            if number:  # the first round warms up
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: {
            key: 1000 * statistics.median(column)
            for key, column in zip(("cpu_ms", "wall_ms"), zip(*t, strict=True), strict=True)
        }
        for name, t in taken.items()
    }


def peak_memory(name: str, threads: int, noise: float) -> float:
    """Return the peak memory of a first call in MiB; to be run in a separate process."""
    torch.set_num_threads(threads)
    case = make_case(noise)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    WHOLE[name](case)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(field))


def same(case: Case) -> float:
    """Return the fraction of pixels on which the plain heuristic and refine's agree."""
    return (plain(case) == WHOLE["refine heuristic"](case)).double().mean().item()


def show(numbers: dict[str, dict[str, float]]) -> None:
    """Print the figures as a table."""
    table = Table("", "CPU ms", "wall ms", "ratio CPU", "ratio wall", "peak MiB")
    for name, row in numbers.items():
        keys = (
            ("cpu_ms", ".1f"),
            ("wall_ms", ".1f"),
            ("ratio_cpu", ".2f"),
            ("ratio_wall", ".2f"),
            ("peak_mib", ".0f"),
        )
        table.add_row(name, *(format(row[key], form) if key in row else "" for key, form in keys))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="(default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.1,
        help="noise of the logits; 0.1 gives 17,000 runs, COCO ground truth has up to 14,000 (default: 0.1)",
    )
    parser.add_argument("--instances", type=int, nargs="+", default=[], help="only time so many instances each")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.instances:
        numbers = measure(by_count(options.instances, options.noise), options.rounds)
        show(numbers)
        if options.out:
            write_json(
                options.out, {"machine": describe_machine(torch.device("cpu")), "numbers": numbers}, indent=1
            )
        return
    case = make_case(options.noise)
    numbers = measure(parts(case), options.rounds)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in WHOLE:
            numbers[name]["peak_mib"] = pool.apply(peak_memory, (name, options.threads, options.noise))
    for name, row in numbers.items():
        if name != "UE alone":
            base = numbers["given map: plain heuristic" if name.startswith("given map") else "plain heuristic"]
            row["ratio_cpu"], row["ratio_wall"] = (row[k] / base[k] for k in ("cpu_ms", "wall_ms"))
    show(numbers)
    sem_seg, _ = semantic_map(case.logits, SIZE, SIZE)
    facts = {
        "noise": options.noise,
        "runs": len(run_starts(sem_seg)),
        "same_pixels": same(case),
        "segments": int(WHOLE["refine soe + UE"](case).max()),
    }
    print(facts)
    if options.out:
        machine = describe_machine(torch.device("cpu"))
        write_json(options.out, {"machine": machine, "case": facts, "numbers": numbers}, indent=1)


if __name__ == "__main__":
    main()
