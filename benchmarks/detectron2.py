"""Panoptic-FPN R50 here against detectron2's own, same weights, same image, on the CPU.

    git clone https://github.com/facebookresearch/detectron2
    pip install --target site fvcore iopath omegaconf yacs hydra-core cloudpickle termcolor tabulate
    python benchmarks/detectron2.py --detectron2 detectron2 --site site --threads 1 --out detectron2.json

The checkout need not be compiled: this network takes ROI-Align and NMS from torchvision. Its weights are random,
with norms and last layers scaled on the image so that 100 detections come out and most reach the panoptic map;
`refine.checkpoint.convert.convert` maps them to ours. Both go from the picture to the panoptic map and take turns
for `--rounds` rounds; the median counts, and the two maps are compared. CPU time of the process is given too: its
ratio hardly depends on what else the machine does.
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
"""Standard deviation that each channel of a last layer gets."""


def load_theirs(checkout: Path, site: Path | None) -> nn.Module:
    """detectron2's network of random weights, without its compiled extension."""
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
    """Make the outputs of norms and last layers as spread as a trained network's are, by one run on the image."""

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
        seen: list[str] = []  # the first level decides for all

        def once(layer: Any, inputs: Any, output: Tensor, seen: list[str] = seen, spread: float = spread) -> Any:
            if seen:
                return None
            seen.append("")
            return rescale(layer, inputs, output, spread)

        hooks.append(model.get_submodule(name).register_forward_hook(once))
    model([{"image": image}])
    for hook in hooks:
        hook.remove()


def load_ours(theirs: nn.Module) -> Predictor:
    """The same network here."""
    categories = Categories.from_json(read_json(COCO), str(COCO))
    conversion = convert({name: value.numpy() for name, value in theirs.state_dict().items()})
    saved = SavedModel(to_model(conversion, categories), categories, SIZE, "heuristic", conversion.fusion)
    return Predictor(saved, device="cpu")


def picture(seed: int = 0) -> Tensor:
    """Soft patches of colour with some grain: Tensor[3, H, W] uint8 RGB."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 10, 15, generator=generator) * 255
    soft = F.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=False)[0]
    return (soft + 10 * torch.randn(3, *SIZE, generator=generator)).clamp(0, 255).byte()


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Share of pixels whose segments correspond, whatever their ids: Tensor[H, W] int each."""
    count = int(theirs.max()) + 1
    pairs = torch.bincount((ours.long() * count + theirs.long()).flatten(), minlength=(int(ours.max()) + 1) * count)
    shared = pairs.view(-1, count)
    best = (shared == shared.amax(0)) & (shared == shared.amax(1, keepdim=True))
    return float(shared[best].sum() / ours.numel())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectron2", type=Path, required=True, help="a checkout")
    parser.add_argument("--site", type=Path, help="folder of packages that it needs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the CPU (torch's choice)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    image = picture()
    bgr = image.flip(0).float()
    theirs = load_theirs(options.detectron2, options.site)
    calibrate(theirs, bgr)
    ours = load_ours(theirs)

    @torch.no_grad()
    def run_theirs() -> dict[str, Any]:
        return theirs([{"image": bgr}])[0]

    their_result, our_result = run_theirs(), ours(image)
    their_map, segments = their_result["panoptic_seg"]
    facts = {
        "size": SIZE,
        "detections": len(their_result["instances"]),
        "segments": {"things": sum(s["isthing"] for s in segments), "all": len(segments)},
        "same_pixels": agreement(our_result.segment_ids, their_map),
    }
    numbers = take_turns({"detectron2": run_theirs, "refine": lambda: ours(image)}, options.rounds)
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
