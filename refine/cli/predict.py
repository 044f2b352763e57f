"""refine predict"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refine.cli.images import (
    Failure,
    add_arguments,
    find_images,
    finish,
    for_each,
    note,
    write_failures,
)
from refine.cli.networks import check_model, note_remarks
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
from refine.savers import SAVERS, find_savers

if TYPE_CHECKING:
    from refine.inference.image_job import Finished, JobSettings


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    options = _parser(prog, description).parse_args(arguments)
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
    from refine.inference.image_job import ImageJob
    from refine.inference.limits import IN_PREDICT
    from refine.inference.pipeline import Workers, run_pipeline
    from refine.runtime import set_threads

    set_threads(options.threads)
    settings = _settings(options)
    predictor = settings.predictor()
    note_remarks(predictor.network)
    limits, failures = predictor.limits(), list[Failure]()

    def record(finished: Finished) -> str:
        writer.record(finished.written)
        limits.merge(finished.limits)
        for text in finished.notes:
            note(text)
        return f"{finished.summary}; model: {options.model}"

    try:
        info = settings.info(predictor)
        with PredictionWriter(out, predictor.categories, info, journal=True, savers=savers) as writer:
            finished = writer.resume(files) if options.resume else set()
            if finished:
                note(f"{len(finished)} of {len(files)} images are finished already")
            left = [file for file in files if file.name not in finished]
            workers = Workers.on(predictor.device.type, options.batch)
            outcomes = run_pipeline(left, ImageJob(settings, predictor, writer), workers)
            for_each(left, outcomes, record, failures)
    finally:
        write_failures(out / "failed.json", failures)
    for remark in limits.remarks(IN_PREDICT).values():
        note(remark)
    if SAVERS["overlay"] in savers:
        from refine.drawing.overlay_video import write_overlay_videos

        for video in write_overlay_videos(files, out / "overlays"):
            print(f"video of the overlays: {video}")
    hint = f"; to look at them, open {out / 'overlays'}" if SAVERS["overlay"] in savers else ""
    finish(failures, files, options.out, f"results of model {options.model}", hint)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
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
        "--batch",
        type=_batch,
        default="auto",
        metavar="N|auto",
        help="most images per run of the network, of one size (default: auto, 1 on a CPU and 8 on a GPU)",
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
    add_image_options(parser, all_pages=True)
    return parser


def _batch(text: str) -> int | None:
    """Convert the value of `--batch`; None stands for "auto"."""
    return None if text == "auto" else count_from(1)(text)


def _settings(options: argparse.Namespace) -> JobSettings:
    from refine.inference.image_job import JobSettings

    return JobSettings(
        checkpoint=options.model,
        device=options.device,
        method=options.method,
        fusion=fusion_changes(options),
        scale=options.scale,
        max_detections=options.max_detections,
        reading=image_options(options),
        listed_in=options.json,
    )


def _listed(options: argparse.Namespace) -> list[ImageFile]:
    """List the images of a data set, which lie below the one folder given."""
    from refine.formats.panoptic_json import PanopticJson

    if options.page == "all":
        raise RefineError("--page all: --json lists the images; give one page, or leave out --json")
    if len(options.source) != 1 or not Path(options.source[0]).is_dir():
        raise RefineError("--json: give one folder that holds the images of the data set")
    folder, files = Path(options.source[0]), []
    for image_id, image in PanopticJson(options.json, needs=("images", "categories")).images.items():
        assert image.file_name is not None  # checked by the reader
        files.append(ImageFile(folder / image.file_name, image.file_name, image_id, image.size))
    return files
