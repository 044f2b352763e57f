"""refine predict"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    add_arguments(parser, "folder for panoptic.json, panoptic/ and overlays/")
    parser.add_argument("--method", help="rule of fusion (default: the checkpoint's)")
    parser.add_argument("--no-overlays", action="store_true", help="write no pictures")
    options = parser.parse_args(arguments)

    from rich.progress import track

    from refine.data.images import list_images, read_image
    from refine.engine.draw import overlay, write_picture
    from refine.engine.predictor import Predictor
    from refine.errors import RefineError
    from refine.evaluation.coco_format import PredictionWriter

    files = list_images(options.source)
    predictor = Predictor(options.checkpoint, device=options.device, method=options.method)
    if options.score_threshold is not None:
        predictor.fusion = replace(predictor.fusion, score_threshold=options.score_threshold)
    out, failures = Path(options.out), []
    with PredictionWriter(out, predictor.categories) as writer:
        for number, path in enumerate(track(files, "predicting", disable=not sys.stderr.isatty()), 1):
            try:
                image = read_image(path)
                result = predictor(image)
                writer.add(number, path.name, result)
            except RefineError as error:  # the other pictures are still worth having
                failures.append(error)
                print(f"refine: error: {error}", file=sys.stderr)
                continue
            if not options.no_overlays:
                write_picture(out / "overlays" / f"{path.stem}.jpg", overlay(image, result))
            things = sum(segment.isthing for segment in result.segments)
            print(f"{path}: things: {things}, classes of stuff: {len(result) - things}")
        if len(failures) == len(files):
            raise RefineError(f"none of the {len(files)} pictures could be used; nothing is written")
    if failures:
        raise RefineError(f"{len(failures)} of {len(files)} pictures failed; the others are in {out}")
    print(f"results in {out}")


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """What `predict` and `explain` have in common; `out` says what the folder is for."""
    parser.add_argument("source", nargs="+", help="pictures, folders of pictures, or patterns in quotes")
    parser.add_argument("-o", "--out", required=True, help=out)
    parser.add_argument(
        "--checkpoint", default="nuclei", help="name of a shipped model, or a folder (default: nuclei)"
    )
    parser.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    parser.add_argument(
        "--score-threshold", type=float, help="drop instances below, 0-1 (default: the checkpoint's)"
    )
