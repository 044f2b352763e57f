"""refine predict"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine import __version__
from refine.cli.images import add_arguments, check_model, find_images, finish, for_each, note
from refine.cli.options import (
    add_image_options,
    count_from,
    fusion_changes,
    image_options,
    positive,
    refuse_overwriting,
)
from refine.errors import RefineError
from refine.formats.image_list import ImageFile, result_names
from refine.fusion.config import OWN_MERGE, FusionConfig, check_known
from refine.savers import SAVERS, encode, find_savers

if TYPE_CHECKING:
    from torch import Tensor

    from refine.formats.writer import PredictionWriter
    from refine.inference.predictor import Predictor
    from refine.structures import PanopticResult

NO_LIMIT = 2**31
"""Long side in pixels that no image reaches."""


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    add_arguments(parser, "folder for panoptic.json, panoptic/ and the files of --save")
    parser.add_argument(
        "--json", metavar="GT.json", help="predict the images listed in this JSON, below the one folder given"
    )
    parser.add_argument("--method", help="fusion rule (default: the checkpoint's)")
    parser.add_argument(
        "--scale", type=positive, help="resize images by this factor (default: to the model's test size)"
    )
    parser.add_argument(
        "--max-detections", type=count_from(1), help="maximum number of objects per image (default: the model's)"
    )
    parser.add_argument(
        "--save",
        metavar="NAME,…",
        default="coco,overlay",
        help="formats of the results, by commas: coco (panoptic.json and panoptic/*.png, always written); "
        + "; ".join(f"{name} ({saver.help})" for name, saver in SAVERS.items())
        + " (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="keep the finished results of the same run in --out")
    add_image_options(parser)
    options = parser.parse_args(arguments)
    check_model(options)
    image_options(options)
    FusionConfig(**fusion_changes(options))
    if options.method not in (None, OWN_MERGE):
        check_known(options.method)
    savers = find_savers(options.save)
    files = _listed(options) if options.json else find_images(options)
    names = result_names(files)
    out = Path(options.out)
    written = [f"panoptic/{n}.png" for n in names]
    written += [path for file in files for saver in savers for path in saver.paths(file.name, ())]
    refuse_overwriting("--out: its", (out / path for path in written), (file.path for file in files))

    from refine.formats.writer import PredictionWriter
    from refine.inference.limits import IN_PREDICT
    from refine.inference.predictor import Predictor
    from refine.runtime import set_threads

    set_threads(options.threads)
    predictor = Predictor(
        options.checkpoint, device=options.device, method=options.method, fusion=fusion_changes(options)
    )
    if options.max_detections:
        predictor.limit_detections(options.max_detections)
    info = _info(predictor, options)
    with PredictionWriter(out, predictor.categories, info, journal=True, savers=savers) as writer:
        finished = writer.resume(files) if options.resume else set()
        if finished:
            note(f"{len(finished)} of {len(files)} images are finished already")
        job = _Job(predictor, writer, options)
        failed = for_each([file for file in files if file.name not in finished], job)
    for remark in job.limits.remarks(IN_PREDICT).values():
        note(remark)
    hint = f"; to look at them, open {out / 'overlays'}" if SAVERS["overlay"] in savers else ""
    finish(failed, files, options.out, f"results of model {options.checkpoint}", hint)


def _listed(options: argparse.Namespace) -> list[ImageFile]:
    """List the images of a data set, which lie below the one folder given."""
    from refine.formats.panoptic_json import PanopticJson

    if len(options.source) != 1 or not Path(options.source[0]).is_dir():
        raise RefineError("--json: give one folder that holds the images of the data set")
    folder, files = Path(options.source[0]), []
    for image_id, image in PanopticJson(options.json, needs=("images", "categories")).images.items():
        assert image.file_name is not None  # checked by the reader
        files.append(ImageFile(folder / image.file_name, image.file_name, image_id, image.size))
    return files


def _info(predictor: Predictor, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything but the images that determines the results: `info` of panoptic.json."""
    size = predictor.test_size
    return {
        "description": f"Panoptic results of refine {__version__}, model {options.checkpoint}",
        "version": __version__,
        "model": options.checkpoint,
        "weights": predictor.network.digest(),
        "method": predictor.method,
        "fusion": asdict(predictor.fusion),
        "test_size": list(size) if options.scale is None and size else None,
        "scale": options.scale,
        "max_detections": predictor.network.max_detections,
    }


class _Job:
    """Prediction of one image after the other, with a record of images in which objects may be missing.

    Args:
        predictor: model, method and thresholds.
        writer: writes the results.
        options: parsed command line.
    """

    def __init__(self, predictor: Predictor, writer: PredictionWriter, options: argparse.Namespace) -> None:
        self.predictor, self.writer, self.options = predictor, writer, options
        self.limits = predictor.limits()

    def __call__(self, file: ImageFile) -> str:
        from refine.formats.images import read_image
        from refine.formats.results.saver import ImageResult

        image = read_image(file.path, file.size, image_options(self.options), notify=note)
        size = (image.shape[1], image.shape[2])
        if file.size is not None and file.size != size:
            raise RefineError(
                f"{file.path}: {size[1]} × {size[0]} pixels, but {self.options.json} says {file.size[1]} × "
                f"{file.size[0]}; correct one of them"
            )
        result = self._predict(image, file.name)
        item = ImageResult(result, file.name, image, model=self.options.checkpoint)
        self.writer.add(file.id, file.name, result, encode(self.writer.savers, item))
        return f"{result.summary()}; model: {self.options.checkpoint}"

    def _predict(self, image: Tensor, name: str) -> PanopticResult:
        predictor, size = self.predictor, (image.shape[1], image.shape[2])
        if self.options.scale is not None:
            predictor.test_size = (max(1, round(min(size) * self.options.scale)), NO_LIMIT)
        threshold = predictor.fusion.score_threshold
        raw = predictor.predict_raw([image], threshold)[0]
        self.limits.add(name, raw, threshold)
        return predictor.fuse(raw)
