"""Speed of Panoptic-FPN R50 in refine and in detectron2, with the same weights and image, on the CPU.

    git clone https://github.com/facebookresearch/detectron2
    pip install --target site fvcore iopath omegaconf yacs hydra-core cloudpickle termcolor tabulate
    python benchmarks/detectron2.py --detectron2 detectron2 --site site --threads 1 --out detectron2.json

The checkout need not be compiled: this network uses ROI-Align and NMS of torchvision. The weights are random, with
norms and last layers scaled on the image so that there are 100 detections, most of which reach the panoptic map;
`refine.checkpoint.convert.convert` converts them. Both networks run from the image to the panoptic map, in turns
for `--rounds` rounds, in float32 and under autocast in bf16, and the medians and the maps are compared. CPU time of
the process is reported too, because its ratio hardly depends on other load of the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from turns import take_turns

from refine.checkpoint.convert.convert import COCO, convert, to_model
from refine.checkpoint.folder import SavedModel
from refine.experiments.machine import describe_machine
from refine.files import read_json, write_json
from refine.inference.predictor import Predictor
from refine.networks.native import NativeNetwork, Precision
from refine.structures import Categories

CONFIG = "configs/COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"
SIZE = (800, 1216)
SPREAD = {
    "proposal_generator.rpn_head.objectness_logits": 1.0,
    "proposal_generator.rpn_head.anchor_deltas": 0.2,
    "roi_heads.box_predictor.cls_score": 4.0,
    "roi_heads.box_predictor.bbox_pred": 0.5,
    "roi_heads.mask_head.predictor": 2.0,
    "sem_seg_head.predictor": 2.0,
}
"""Standard deviation of each output channel, by last layer."""


def load_detectron2(checkout: Path, site: Path | None) -> nn.Module:
    """Build detectron2's network with random weights, without its compiled extension."""
    sys.path[:0] = [str(checkout)]
    sys.path += [str(site)] if site else []
    sys.modules["detectron2._C"] = ModuleType("detectron2._C")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    config = get_cfg()
    config.merge_from_file(str(checkout / CONFIG))
    config.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    return build_model(config).eval()


@torch.no_grad()
def calibrate(model: nn.Module, image: Tensor) -> None:
    """Scale norms and last layers by one run on an image, so that their outputs resemble a trained network's."""

    def normalise(norm: Any, inputs: tuple[Tensor]) -> None:
        norm.running_var, norm.running_mean = torch.var_mean(inputs[0], (0, 2, 3))

    def rescale(layer: Any, _: tuple[Tensor], output: Tensor, spread: float) -> Tensor:
        over = [axis for axis in range(output.ndim) if axis != 1]
        std, mean = torch.std_mean(output, over, keepdim=True)
        factor = spread / std.clamp(min=1e-6)
        layer.weight *= factor.view(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias.copy_((layer.bias - mean.flatten()) * factor.flatten())
        return (output - mean) * factor

    hooks = [
        module.register_forward_pre_hook(normalise)
        for module in model.modules()
        if type(module).__name__ == "FrozenBatchNorm2d"
    ]
    for name, spread in SPREAD.items():
        seen: list[str] = []  # the first level determines the scale of all levels

        def once(layer: Any, inputs: Any, output: Tensor, seen: list[str] = seen, spread: float = spread) -> Any:
            if seen:
                return None
            seen.append("")
            return rescale(layer, inputs, output, spread)

        hooks.append(model.get_submodule(name).register_forward_hook(once))
    model([{"image": image}])
    for hook in hooks:
        hook.remove()


def load_refine(model: nn.Module, precision: Precision) -> Predictor:
    """Convert detectron2's network to refine, and load it as from a file."""
    categories = Categories.from_json(read_json(COCO), str(COCO))
    conversion = convert({name: value.numpy() for name, value in model.state_dict().items()})
    saved = SavedModel(to_model(conversion, categories), categories, SIZE, "heuristic", conversion.fusion)
    return Predictor(NativeNetwork(saved, "cpu", precision, folded=True))


def make_image(seed: int = 0) -> Tensor:
    """Return smooth colour patches with noise: Tensor[3, H, W] uint8 RGB."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 10, 15, generator=generator) * 255
    soft = F.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=False)[0]
    return (soft + 10 * torch.randn(3, *SIZE, generator=generator)).clamp(0, 255).byte()


def agreement(first: Tensor, second: Tensor) -> float:
    """Return the fraction of pixels in corresponding segments of two maps, each Tensor[H, W] int with any ids."""
    count = int(second.max()) + 1
    pairs = torch.bincount(
        (first.long() * count + second.long()).flatten(), minlength=(int(first.max()) + 1) * count
    )
    shared = pairs.view(-1, count)
    best = (shared == shared.amax(0)) & (shared == shared.amax(1, keepdim=True))
    return float(shared[best].sum() / first.numel())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectron2", type=Path, required=True, help="checkout of detectron2")
    parser.add_argument("--site", type=Path, help="folder of its dependencies")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    image = make_image()
    bgr = image.flip(0).float()
    model = load_detectron2(options.detectron2, options.site)
    calibrate(model, bgr)
    predictor, in_bf16 = load_refine(model, "32"), load_refine(model, "bf16")

    @torch.no_grad()
    def run_detectron2(bf16: bool = False) -> dict[str, Any]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model([{"image": bgr}])[0]

    expected, result = run_detectron2(), predictor(image)
    expected_map, segments = expected["panoptic_seg"]
    facts = {
        "size": SIZE,
        "detections": len(expected["instances"]),
        "segments": {"things": sum(s["isthing"] for s in segments), "all": len(segments)},
        "same_pixels": agreement(result.segment_ids, expected_map),
        "same_pixels_bf16": agreement(in_bf16(image).segment_ids, expected_map),
        "same_pixels_detectron2_bf16": agreement(run_detectron2(bf16=True)["panoptic_seg"][0], expected_map),
    }
    networks = {
        "detectron2": run_detectron2,
        "refine": lambda: predictor(image),
        "detectron2, bf16": lambda: run_detectron2(bf16=True),
        "refine, bf16": lambda: in_bf16(image),
    }
    numbers = take_turns(networks, options.rounds)
    table = Table("network", "wall s", "CPU s", "ratio wall", "ratio CPU")
    for name, row in numbers.items():
        table.add_row(name, *(f"{row[k]:.2f}" for k in ("wall_s", "cpu_s", "ratio_wall", "ratio_cpu")))
    Console().print(table)
    print(facts)
    if options.out:
        machine = describe_machine(torch.device("cpu"))
        write_json(options.out, {"machine": machine, "case": facts, "networks": numbers}, indent=1)
    if facts["same_pixels"] < 0.999:
        sys.exit("the two panoptic maps differ")


if __name__ == "__main__":
    main()
