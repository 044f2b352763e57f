"""refine convert"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from refine.cli.options import check_above, check_out_file, refuse_overwriting, require_paths
from refine.cli.parser import Parser
from refine.errors import counted

DETAILS = """\
Converts detectron2's Panoptic-FPN and Mask R-CNN with a ResNet-FPN (FrozenBN or GN; deformable; cascade),
torchvision's maskrcnn_resnet50_fpn and _v2, and ImageNet backbones of MSRA, FAIR and torchvision. The
architecture is inferred from the weights. No code in the file is executed.

A detector is written as a model folder for `refine predict --checkpoint`; a backbone is written as
FILE.safetensors for `backbone.weights` of a config.
"""


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(
        prog, description=f"{description}.\n\n{DETAILS}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help=".pkl of detectron2 or Caffe2, .pth of torchvision, or .safetensors")
    parser.add_argument("-o", "--out", required=True, help="model folder, or FILE.safetensors for a backbone")
    parser.add_argument(
        "--config", help="detectron2 or refine YAML with what weights do not contain (strides, pixel statistics, …)"
    )
    parser.add_argument("--categories", help="panoptic JSON with the network's categories (default: COCO's 133)")
    parser.add_argument("--report", help="JSON file to write: the fate of every tensor, and the whole config")
    options = parser.parse_args(arguments)

    given = [options.source, options.config, options.categories]
    require_paths(given)
    refuse_overwriting("--out", [options.out], given)
    check_above("--out", options.out)
    check_out_file("--report", options.report, given)

    import json

    from refine.checkpoint.convert.convert import convert_file
    from refine.files import write_json

    conversion = convert_file(options.source, options.out, options.categories, options.config)
    report = conversion.report()
    if options.report:
        write_json(options.report, report, indent=1)
    print(f"{options.source}: {conversion.source}")
    print(f"converted: {counted(len(conversion.names), 'weight')}; unused: {len(conversion.left)}")
    for name, shape in list(conversion.left.items())[: None if options.report is None else 5]:
        print(f"  unused: {name} {shape}")
    if conversion.absent:
        print("missing: the semantic head; the model predicts things but no stuff until the head is trained")
    if conversion.backbone_only:
        backbone = report["model"].pop("backbone") | {"weights": options.out}
        report["model"] = {"backbone": backbone, **report["model"]}
    settings = {
        k: v for k, v in report["model"].items() if k in ("backbone", "channels", "pixel_mean", "pixel_std")
    }
    print("model: " + json.dumps(settings))
    print(f"written to {options.out}")
