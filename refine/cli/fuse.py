"""refine fuse"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from refine.cli.options import (
    add_fusion,
    add_ray,
    check_results_out,
    connect,
    fusion_changes,
    refuse_overwriting,
    require_paths,
)
from refine.cli.parser import Parser
from refine.errors import RefineError, counted
from refine.fusion.config import FusionConfig, Method

if TYPE_CHECKING:
    from refine.formats.panoptic_json import ImageEntry
    from refine.formats.writer import PredictionWriter
    from refine.inference.fuse_files import FusionInputs, FusionItem
    from refine.inference.on_ray import Cluster


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    options = _parser(prog, description).parse_args(arguments)
    if options.unknown_erasing and not options.confidence:
        raise RefineError("--unknown-erasing: needs --confidence; give the folder, or omit --unknown-erasing")
    if options.unknown_erasing and options.ue_region == "dilated":
        raise RefineError("--ue-region dilated: needs the probabilities of all classes; give --ue-region core")
    config = FusionConfig(**fusion_changes(options))
    out = Path(options.out)
    given = [options.instances, options.categories, options.semantic, options.confidence]
    require_paths(given)
    refuse_overwriting("--out: its", [out / "panoptic.json", out / "panoptic"], given)
    check_results_out(out, [options.semantic, options.confidence])

    from refine.formats.fusion_inputs import read_results
    from refine.formats.panoptic_json import PanopticJson
    from refine.formats.writer import PredictionWriter
    from refine.inference.fuse_files import FileFusion, FusionInputs, FusionItem

    content = PanopticJson(options.categories, needs=("images", "categories"))
    by_image = read_results(options.instances, content.images)
    inputs = FusionInputs(
        options.instances,
        options.semantic,
        options.confidence,
        content.categories,
        options.method,
        options.checkpoint,
        config,
    )
    items = [FusionItem(*_named(image), by_image[image[0]]) for image in content.images.items()]
    fusion, cluster = FileFusion(inputs), connect(options)
    with PredictionWriter(options.out, content.categories) as writer:
        if cluster is None:
            for item in items:
                writer.add(item.image_id, item.name, fusion(item))
        else:
            _fuse_on(cluster, items, inputs, writer)
    print(f"{counted(len(content.images), 'image')} fused by {options.method!r}: {options.out}/panoptic.json")


def _parser(prog: str, description: str) -> Parser:
    parser = Parser(
        prog,
        description=description,
        epilog="Semantic PNGs have one channel of 8 or 16 bits with the category id of each pixel, 0 for none "
        "unless a category has the id 0. Semantic and confidence PNGs have the path of their image with the suffix "
        ".png.",
    )
    parser.add_argument("--instances", required=True, help="COCO results JSON: image_id, category_id, score, mask")
    parser.add_argument("--semantic", required=True, help="folder of semantic PNGs")
    parser.add_argument("--confidence", help="folder of semantic confidence PNGs, 0-255 for 0-1")
    parser.add_argument("--categories", required=True, help="JSON with `images` and panoptic `categories`")
    parser.add_argument(
        "--method", choices=get_args(Method), default="heuristic", help="fusion rule (default: heuristic)"
    )
    parser.add_argument(
        "--checkpoint",
        help="for a learned rule: model with a ranking head or an occlusion head without features, or an occlusion "
        "head of refine train-occlusion",
    )
    add_fusion(parser, FusionConfig())
    add_ray(parser)
    parser.set_defaults(device="cpu", threads=None)
    parser.add_argument("-o", "--out", required=True, help="folder for panoptic.json and panoptic/")
    return parser


def _fuse_on(cluster: Cluster, items: Sequence[FusionItem], inputs: FusionInputs, writer: PredictionWriter) -> None:
    """Fuse on a cluster; the results are listed in the order of the items."""
    from refine.formats.image_list import ImageFile
    from refine.inference.on_ray import FuseWorker

    writer.expect(ImageFile(Path(item.name), item.name, item.image_id) for item in items)
    writer.begin()
    for outcome in cluster.map(items, FuseWorker, {"inputs": inputs, "out": writer.out}):
        if isinstance(outcome, Exception):
            raise outcome
        writer.record(outcome)


def _named(item: tuple[int | str, ImageEntry]) -> tuple[int | str, str, tuple[int, int]]:
    """Return the image id, file name and (height, width); the reader has checked that they are present."""
    image_id, image = item
    assert image.file_name is not None
    assert image.size is not None
    return image_id, image.file_name, image.size
