"""refine export"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from refine.checkpoint.find import find_model, licence_of
from refine.cli.options import add_fusion, add_threads, check_out_file, fusion_changes, require_paths
from refine.cli.parser import Parser
from refine.errors import RefineError
from refine.fusion.config import check_known

if TYPE_CHECKING:
    from torch import Tensor

    from refine.export.verify import Arrays

DETAILS = """\
The file takes an image of any size, uint8 [3, height, width], and returns the panoptic map and a table of its
segments: resizing, network and fusion are inside. The thresholds below are inputs whose defaults are those of the
file. See docs/export.md. Before the file is written, its results are compared with PyTorch's.
"""


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(
        prog, description=f"{description}.\n\n{DETAILS}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="name of a model (see `refine models`), or model folder")
    parser.add_argument("-o", "--out", required=True, help="file to write, such as model.onnx")
    parser.add_argument(
        "--format", choices=["onnx", "torch"], default="onnx", help="torch: a torch.export .pt2 (default: onnx)"
    )
    parser.add_argument("--method", help="fusion rule (default: the checkpoint's)")
    parser.add_argument("--licence", help="licence of the weights, for the file's metadata (default: as published)")
    parser.add_argument("--images", nargs="+", default=[], help="images to compare (default: drawn scenes)")
    add_threads(parser)
    add_fusion(parser)
    options = parser.parse_args(arguments)
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[options.format]
    if Path(options.out).suffix != suffix:
        raise RefineError(f"--out {options.out}: expected a file name that ends in {suffix}")
    find_model(options.checkpoint)
    if options.method:
        check_known(options.method)
    require_paths(options.images)
    check_out_file("--out", options.out, [options.checkpoint, *options.images])
    _export(options)


def _export(options: argparse.Namespace) -> None:
    from refine.checkpoint.folder import load_model
    from refine.export import program
    from refine.export.verify import compare, require, sample_images
    from refine.files import write_bytes
    from refine.formats.images import read_image
    from refine.fusion.config import check_method
    from refine.inference.predictor import Predictor
    from refine.runtime import prepare_cpu

    prepare_cpu(options.threads)
    saved = load_model(options.checkpoint)
    saved = replace(
        saved, method=options.method or saved.method, fusion=saved.fusion.changed(fusion_changes(options))
    )
    predictor = Predictor(saved, device="cpu")
    check_method(saved.method, predictor.fusion_heads())
    images = [(path, read_image(path)) for path in options.images] or sample_images()
    traced = program.trace(saved)
    licence = options.licence or licence_of(options.checkpoint)
    entries = program.metadata(saved, options.checkpoint, licence, predictor.network.digest())
    content = program.to_onnx(traced, entries) if options.format == "onnx" else program.to_pt2(traced, entries)
    agreements = compare(predictor, _runner(content, options), images)
    for agreement in agreements:
        print(agreement)
    require(agreements)
    write_bytes(options.out, content)
    print(f"written to {options.out}: {len(content) / 1e6:.1f} MB, method {saved.method}")


def _runner(content: bytes, options: argparse.Namespace) -> Callable[[Tensor], Arrays]:
    """Return a function that runs the exported file."""
    if options.format == "onnx":
        from refine.networks.onnx import OnnxSession

        return OnnxSession(content, options.out).run
    from refine.export.program import Pt2

    return Pt2(content).run
