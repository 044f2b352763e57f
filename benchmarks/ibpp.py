"""Cost of the method at test: REFINE against the same network without it.

    python benchmarks/ibpp.py --out ibpp.json
    python benchmarks/ibpp.py configs/coco/cascade_panoptic_fpn_r101_dcn.yaml configs/coco/refine_r101_dcn.yaml

Measured from the image to the panoptic map at 800 × 1333, with random weights and 100 fixed detections with the
sizes of COCO's boxes, so that all networks have the same work after the boxes. As many score above 0.5 and are used
by fusion as COCO has objects per image (7.7, Lin et al. 2014), and 29 score above 0.05 and are painted on REFINE's
canvas; the others have no masks. Masks fill their boxes, so that the same pair overlaps in all networks. `--all`
computes all 100 masks, as for AP. Without configs, IBPP alone is measured on ResNet-50 with heuristic fusion; with
configs, REFINE has its occlusion head and SOE, and "pairs" is the number of pairs that the head evaluates (COCO has
one such pair per image by OCFusion's count, 132,165 in train2017). The networks run in turns for `--rounds` rounds;
medians are reported, and ratios to the first network. CPU time of the process is reported too, because its ratio
hardly depends on other load.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from turns import take_turns

from refine.checkpoint.folder import SavedModel
from refine.experiments.cost import random_model
from refine.experiments.machine import describe_machine
from refine.files import write_json
from refine.inference.predictor import Predictor
from refine.modeling import winograd
from refine.modeling.config import BackboneConfig, IBPPConfig, ModelConfig
from refine.networks.native import NativeNetwork
from refine.runtime import prepare_cpu
from refine.structures import Categories, Instances
from refine.training.config import RunConfig, load_run

THINGS, CLASSES = 80, 133
SIZE = (800, 1333)
DETECTIONS = 100
SCORE_POWER = 9  # power of evenly spaced numbers: eight of a hundred are above 0.5


class FixedBoxes(nn.Module):
    """Box heads that run as usual but find the same 100 boxes for every network."""

    def __init__(self, heads: nn.Module, detections: Instances) -> None:
        super().__init__()
        self.heads, self.detections = heads, detections

    def predict(self, *arguments: Any) -> tuple[list[Instances], torch.Tensor]:
        """See `BoxHeads.predict`, whose last argument is the minimum score."""
        _, finite = self.heads.predict(*arguments)
        return [self.detections[self.detections.scores >= arguments[-1]]], finite


def resnet50(iterations: int, shared: bool = False) -> RunConfig:
    config = RunConfig()
    config.model = ModelConfig(
        backbone=BackboneConfig("resnet50", norm="frozen_bn"), ibpp=IBPPConfig(iterations, shared=shared)
    )
    return config


def with_occlusion(path: str) -> RunConfig:
    """Load a config; REFINE configs get the occlusion head and fusion rule of their second stage."""
    config = load_run(path)
    return load_run(path, ["--model.occlusion={}", "--eval.method=soe"]) if config.model.ibpp.iterations else config


def build(config: RunConfig, detections: Instances, device: torch.device) -> Predictor:
    torch.manual_seed(0)
    model = random_model(config.model, THINGS, CLASSES)
    model.box_heads = FixedBoxes(model.box_heads, detections)  # type: ignore[assignment]
    for head in model.ibpp.mask_heads:
        nn.init.constant_(head.predictor.bias, 4.0)  # type: ignore[union-attr]
    names = [{"id": n + 1, "name": f"class {n + 1}", "isthing": n < THINGS} for n in range(CLASSES)]
    saved = SavedModel(model, Categories.from_json(names), SIZE, config.eval.method, config.eval.fusion)
    return Predictor(NativeNetwork(saved, device, folded=True))


def boxes_of_coco(seed: int = 21) -> Instances:
    """Return 100 boxes of 10 classes with log-normal sides around an eighth of the image (COCO's median).

    With this seed, one pair of the boxes used by fusion overlaps enough for the occlusion head.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    sides = (torch.randn(DETECTIONS, 2, generator=generator) * 0.8 - 2.1).exp().clamp(0.01, 0.95)
    sides = sides * torch.tensor([width, height])
    corner = torch.rand(DETECTIONS, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return Instances(
        SIZE,
        torch.cat([corner, corner + sides], 1),
        torch.linspace(1, 0, DETECTIONS) ** SCORE_POWER,
        torch.randint(10, (DETECTIONS,), generator=generator),
    )


def with_all_masks(predictor: Predictor, image: torch.Tensor) -> None:
    """Predict an image with the masks of all detections."""
    predictor.fuse(predictor.predict_raw([image])[0])


def count_gflop(run: Callable[[], None]) -> float:
    """Return the 10⁹ operations of matrix products and convolutions, all direct ones, two per multiply-add."""
    direct = patch.object(winograd, "can_use", return_value=False)
    with direct, FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def count_pairs(predictor: Predictor, image: torch.Tensor) -> int:
    """Return the number of pairs that the occlusion head evaluates for an image."""
    head, counts = predictor.model.occlusion, [0]
    if head is None:
        return 0
    evaluate = head.predict

    def counted(instances: Instances, pairs: torch.Tensor) -> torch.Tensor:
        counts.append(len(pairs))
        return evaluate(instances, pairs)

    head.predict = counted  # type: ignore[method-assign]
    predictor(image)
    del head.predict
    return sum(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="config YAMLs to compare")
    parser.add_argument("--all", action="store_true", help="compute the masks of all detections")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one per core)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    device = torch.device(options.device)
    detections = boxes_of_coco().to(device)
    configs = {Path(name).stem: with_occlusion(name) for name in options.configs} or {
        "T = 0": resnet50(0),
        "T = 3": resnet50(3),
        "T = 3, shared heads": resnet50(3, shared=True),
    }
    models = {name: build(config, detections, device) for name, config in configs.items()}
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    predict = with_all_masks if options.all else Predictor.__call__
    runs = {name: partial(predict, model, image.to(device)) for name, model in models.items()}
    numbers = take_turns(runs, options.rounds, device)
    table = Table("network", "wall s", "CPU s", "ratio wall", "ratio CPU", "GFLOP", "pairs")
    for name, row in numbers.items():
        row["pairs"] = count_pairs(models[name], image.to(device))
        figures = (f"{row[k]:.2f}" for k in ("wall_s", "cpu_s", "ratio_wall", "ratio_cpu"))
        row["gflop"] = count_gflop(runs[name])
        table.add_row(name, *figures, f"{row['gflop']:.0f}", f"{row['pairs']}")
    Console().print(table)
    if options.out:
        write_json(options.out, {"machine": describe_machine(device), "networks": numbers}, indent=1)


if __name__ == "__main__":
    main()
