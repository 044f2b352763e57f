"""All figures of a GPU in one run, as one table in Markdown and one JSON file.

    bash benchmarks/gpu.sh --out gpu
    bash benchmarks/gpu.sh --device cpu --size small --out rehearsal
    bash benchmarks/gpu.sh --networks refine_r50 --modes fp32 bf16 --batch 8 --rounds 5 --out gpu   # in two minutes

- networks: images per second of the configs of the paper's tables with random weights, from the image to the
  panoptic map, in fp32, bf16 and compiled bf16; one image at a time, and with the batch that is fastest.
- fusion: 100 instances and 133 classes, with the tensors on the device.
- training: time of an update, and the share of it that waits for data, for a config with its data (`--train`), or
  on drawn scenes.
- exported model (`--onnx FILE`, from `refine export`): ONNX Runtime on the CPU, and on CUDA if it has that.

`--size small` takes the same path with small networks and images, to try the script without a GPU. A figure that
fails, for example because memory runs out, is named in the report, and the others are still measured; the exit code
is then 1.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import fusion
import torch
from report import Report
from training import measure as measure_training

from refine.checkpoint.folder import SavedModel
from refine.data.synthetic.scenes import generate, make_scene
from refine.experiments.cost import Cost, measure_cost, random_model
from refine.experiments.machine import describe_machine
from refine.files import write_bytes, write_json
from refine.runtime import processes
from refine.structures import Categories
from refine.training.config import RunConfig, load_run

ROOT = Path(__file__).resolve().parents[1]
THINGS, CLASSES = 80, 133
SMALL = [
    "--model.backbone.name=resnet18",
    "--model.backbone.weights=null",
    "--model.backbone.stem_width=8",
    "--model.backbone.width_per_group=8",
    "--model.backbone.res2_channels=32",
    "--model.fpn_channels=16",
    "--model.box_head.num_convs=1",
    "--model.box_head.conv_channels=16",
    "--model.box_head.fc_channels=16",
    "--model.mask_head.channels=16",
    "--model.semantic_head.channels=16",
    "--model.ibpp.sem_channels=16",
]
"""Overrides that make a network of configs/coco small."""


@dataclass(frozen=True)
class Scale:
    """Size of the measurement.

    Attributes:
        configs: names in configs/coco.
        overrides: of the configs.
        image: (height, width) in pixels.
        max_batch: largest batch that is tried.
        rounds: timed runs of each figure.
        updates: timed updates of training.
    """

    configs: tuple[str, ...]
    overrides: list[str]
    image: tuple[int, int]
    max_batch: int
    rounds: int
    updates: int


SCALES = {
    "full": Scale(
        ("panoptic_fpn_r50", "refine_r50", "cascade_panoptic_fpn_r101_dcn", "refine_r101_dcn", "refine_x101_dcn"),
        [],
        (800, 1333),
        32,
        10,
        20,
    ),
    "small": Scale(("refine_r50",), SMALL, (64, 96), 2, 1, 1),
}
MODES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16 compiled": {"precision": "bf16", "compiled": True},
}


def build(name: str, scale: Scale) -> tuple[RunConfig, SavedModel]:
    """Return a config and its network with random weights; REFINE has its occlusion head and SOE."""
    words = list(scale.overrides)
    if load_run(ROOT / "configs" / "coco" / f"{name}.yaml").model.ibpp.iterations:
        words += ["--model.occlusion={}", "--eval.method=soe"]
    config = load_run(ROOT / "configs" / "coco" / f"{name}.yaml", words)
    torch.manual_seed(0)
    names = [{"id": n + 1, "name": f"class {n + 1}", "isthing": n < THINGS} for n in range(CLASSES)]
    model = random_model(config.model, THINGS, CLASSES)
    return config, SavedModel(
        model, Categories.from_json(names), (800, 1333), config.eval.method, config.eval.fusion
    )


def networks(report: Report, scale: Scale, device: str, modes: list[str]) -> None:
    """Measure every network in these modes, with one image and with the fastest batch."""
    for name in scale.configs:
        _, saved = build(name, scale)
        saved.model.to(device)
        for mode in modes:
            costs: dict[int, Cost] = {}
            while not costs or (max(costs) < scale.max_batch and _grows(costs)):
                batch = 2 * max(costs, default=0) or 1
                before = len(report.failed)
                with report.attempt(f"{name}, {mode}, batch {batch}"):
                    if device != "cpu":
                        torch.cuda.reset_peak_memory_stats()
                    costs[batch] = measure_cost(
                        saved, size=scale.image, batch=batch, device=device, rounds=scale.rounds, **MODES[mode]
                    )
                if len(report.failed) > before:
                    break
            for batch in sorted({1, min(costs, key=lambda n: costs[n].seconds)}) if costs else ():
                cost = costs[batch]
                report.add(
                    "Networks",
                    network=name,
                    mode=mode,
                    batch=batch,
                    **{"images/s": 1 / cost.seconds, "ms": 1000 * cost.seconds},
                    **{"of it fusion, ms": 1000 * cost.stages["fusion"].seconds},
                    **{"TFLOP/s": sum(s.gflops for s in cost.stages.values()) / cost.seconds / 1000},
                    **{"peak GiB": cost.memory / 2**30},
                )


def _grows(costs: dict[int, Cost]) -> bool:
    """Return whether the last batch was at least 3 % faster than the one before."""
    last = max(costs)
    return last == 1 or costs[last].seconds < 0.97 * costs[last // 2].seconds


def fuse_on_device(report: Report, scale: Scale, device: str) -> None:
    """Measure the fusion of 100 instances from the outputs of a network."""
    fusion.SIZE = scale.image
    case = fusion.make_case(0.1)
    instances = replace(
        case.instances,
        **{key: getattr(case.instances, key).to(device) for key in ("boxes", "scores", "labels", "roi_masks")},
    )
    moved = fusion.Case(instances, case.logits.to(device), case.occlusion.to(device))
    for name in ("refine heuristic", "refine soe + UE"):
        seconds = timed(partial(fusion.WHOLE[name], moved), scale.rounds, device)
        expected, found = fusion.WHOLE[name](case), fusion.WHOLE[name](moved).cpu()
        same = (expected == found).double().mean().item()
        report.add("Fusion", rule=name, ms=1000 * seconds, **{"pixels as on the CPU": same})


def timed(run: Callable[[], Any], rounds: int, device: str) -> float:
    """Return the median seconds of a function, after one run to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[rounds // 2]


def training(report: Report, scale: Scale, device: str, path: Path | None) -> None:
    """Measure the updates of a config, or of configs/scenes.yaml on drawn scenes, with 0 and more workers."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--device={device}"]
        if path is None:
            generate(Path(folder), 16, size=(128, 128), seed=1)
            path = ROOT / "configs" / "scenes.yaml"
            words.append("--model.backbone.weights=null")
            words += [
                f"--data.train.{key}={folder}/{value}"
                for key, value in (("images", "images"), ("json", "panoptic.json"), ("segments", "segments"))
            ]
        for workers in (0, 2) if scale.rounds == 1 else (0, 4, 8):
            config = load_run(path, [*words, f"--workers={workers}"])
            with processes(config.device) as group:
                row = measure_training(config, group, scale.updates)
            report.add(
                "Training",
                config=path.stem,
                batch=config.optim.batch_size,
                workers=workers,
                **{
                    "images/s": row["images_per_second"],
                    "waits for data": row["data"] / (row["data"] + _rest(row)),
                },
                **{"one worker loads, images/s": config.optim.batch_size / row["loading"]},
            )


def _rest(row: dict[str, float]) -> float:
    return row["forward"] + row["backward"] + row["update"]


def exported(report: Report, scale: Scale, path: Path) -> None:
    """Run an exported model by every provider that ONNX Runtime has of CUDA and the CPU."""
    import onnxruntime

    image = make_scene(0, 0, scale.image).image.transpose(2, 0, 1).copy()
    for provider in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        if provider not in onnxruntime.get_available_providers():
            report.failed.append(f"{path.name}: this ONNX Runtime has no {provider}")
            continue
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), settings, providers=[provider])
        run = partial(session.run, ["segment_ids", "segments_id"], {"image": image})
        seconds = timed(run, scale.rounds, "cpu")
        report.add("Exported model", file=path.name, provider=provider, ms=1000 * seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    parser.add_argument("--size", choices=SCALES, default="full", help="(default: full)")
    parser.add_argument("--networks", nargs="+", choices=SCALES["full"].configs, help="(default: those of --size)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="(default: all)")
    parser.add_argument("--batch", type=int, help="largest batch to try (default: that of --size)")
    parser.add_argument("--rounds", type=int, help="timed runs of each figure (default: those of --size)")
    parser.add_argument("--train", type=Path, help="training config whose data exist (default: drawn scenes)")
    parser.add_argument("--onnx", type=Path, help="file of `refine export` to run as well")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu"), help="folder of gpu.md and gpu.json (default: gpu)"
    )
    options = parser.parse_args()
    scale, report = SCALES[options.size], Report()
    scale = replace(
        scale,
        configs=tuple(options.networks or scale.configs),
        max_batch=options.batch or scale.max_batch,
        rounds=options.rounds or scale.rounds,
    )
    machine = describe_machine(torch.device(options.device))
    with report.attempt("networks"):
        networks(report, scale, options.device, options.modes)
    with report.attempt("fusion"):
        fuse_on_device(report, scale, options.device)
    with report.attempt("training"):
        training(report, scale, options.device, options.train)
    if options.onnx:
        with report.attempt("exported model"):
            exported(report, scale, options.onnx)
    options.out.mkdir(parents=True, exist_ok=True)
    command = f"bash benchmarks/gpu.sh {shlex.join(sys.argv[1:])}"
    write_bytes(options.out / "gpu.md", report.markdown(machine, command).encode())
    everything = {"machine": machine, "size": options.size, "parts": report.parts, "failed": report.failed}
    write_json(options.out / "gpu.json", everything, indent=1)
    print(f"written to {options.out}/gpu.md and gpu.json")
    return int(bool(report.failed))


if __name__ == "__main__":
    raise SystemExit(main())
