"""refine predict"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from refine.cli.images import (
    Failure,
    add_arguments,
    check_any,
    find_images,
    finish,
    for_each,
    note,
    write_failures,
)
from refine.cli.networks import check_model, class_files, note_remarks
from refine.cli.options import (
    add_image_options,
    add_ray,
    check_results_out,
    connect,
    count_from,
    fusion_changes,
    image_options,
    positive,
    refuse_overwriting,
    require_paths,
)
from refine.cli.parser import Parser
from refine.errors import RefineError, counted
from refine.formats.image_list import ImageFile, result_names
from refine.formats.shards import FAILED, Shard
from refine.fusion.config import OWN_MERGE, check_known
from refine.savers import SAVERS, find_savers
from refine.storage import Location, location

if TYPE_CHECKING:
    from refine.formats.results.saver import Saver
    from refine.formats.writer import PredictionWriter
    from refine.inference.image_job import Finished
    from refine.inference.job_settings import JobSettings
    from refine.inference.on_ray import Cluster
    from refine.inference.predictor import Predictor


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    options = _parser(prog, description).parse_args(arguments)
    files, savers, out = _check(options)

    from refine.formats.writer import PredictionWriter
    from refine.inference.limits import IN_PREDICT
    from refine.runtime import prepare_cpu

    settings = _settings(options)
    prepare_cpu(options.threads)
    cluster = connect(options)
    predictor = (settings if cluster is None else replace(settings, device="cpu")).predictor()
    note_remarks(predictor.network)
    limits, failures, tried = predictor.limits(), list[Failure](), False

    def record(finished: Finished) -> str:
        writer.record(finished.written)
        limits.merge(finished.limits)
        for text in finished.notes:
            note(text)
        return f"{finished.summary}; model: {options.model}"

    try:
        info = settings.info(predictor)
        with PredictionWriter(
            out,
            predictor.categories,
            info,
            shard=options.shard,
            savers=savers,
            known=list(SAVERS.values()),
        ) as writer:
            finished = writer.resume(files) if options.resume else set()
            if finished:
                note(f"{len(finished)} of {counted(len(files), 'image')} finished already")
            left = [file for file in files if file.name not in finished]
            if cluster is None:
                outcomes = _here(left, settings, predictor, writer, options.batch)
            else:
                outcomes = _on(cluster, left, files, settings, writer, options.save)
            tried = True
            for_each(left, outcomes, record, failures)
            if not (finished or options.shard):  # those that fail are left out of the results
                check_any(failures, files)
    finally:
        if tried:
            write_failures(options.shard.failures(out) if options.shard else out / FAILED, failures)
    for remark in limits.remarks(IN_PREDICT).values():
        note(remark)
    if SAVERS["overlay"] in savers and isinstance(out, Path) and options.shard is None:
        from refine.drawing.overlay_video import write_overlay_videos

        for video in write_overlay_videos(files, out / "overlays", {failure.file.name for failure in failures}):
            print(f"video of the overlays: {video}")
    hint = f"; to look at them, open {out / 'overlays'}" if SAVERS["overlay"] in savers else ""
    finish(failures, files, options.out, f"results of model {options.model}", hint)


def _check(options: argparse.Namespace) -> tuple[Sequence[ImageFile], list[Saver], Location]:
    """Check the options before torch is imported; return the images of this shard, the formats and the folder."""
    check_model(options)
    if options.method not in (None, OWN_MERGE):
        check_known(options.method)
    savers = find_savers(options.save)
    files: Sequence[ImageFile] = _listed(options) if options.json else find_images(options)
    names = result_names(files)
    if options.shard:
        options.shard = options.shard.identify(files)
        files = options.shard.of(files)
    out = location(options.out)
    joint = [saver.joint for saver in SAVERS.values() if saver.joint]
    written = [f"panoptic/{n}.png" for n in names]
    written += [path for file in files for saver in savers for path in saver.paths(file.name, ())]
    written += ["panoptic.json", *joint]
    given = (options.json, *class_files(options), *(file.path for file in files))
    refuse_overwriting("--out: its", (out / path for path in written), given)
    check_results_out(options.out, options.source, [*joint, *(name for saver in savers for name in saver.names)])
    return files, savers, out


Outcomes = Iterator[tuple[ImageFile, "Finished | Exception"]]


def _here(
    files: Sequence[ImageFile],
    settings: JobSettings,
    predictor: Predictor,
    writer: PredictionWriter,
    batch: int | None,
) -> Outcomes:
    """Predict images in this process."""
    from refine.inference.image_job import ImageJob
    from refine.inference.pipeline import Workers, run_pipeline

    workers = Workers.on(predictor.device.type, batch)
    return run_pipeline(files, ImageJob(settings, predictor, writer, note), workers)


def _on(
    cluster: Cluster,
    files: Sequence[ImageFile],
    order: Sequence[ImageFile],
    settings: JobSettings,
    writer: PredictionWriter,
    save: str,
) -> Outcomes:
    """Predict images on a cluster; they finish in any order, and are listed in that of `order`."""
    from refine.inference.on_ray import PredictWorker

    writer.expect(order)
    writer.begin()
    arguments = {
        "settings": replace(settings, device=cluster.device),
        "out": writer.out,
        "save": save,
        "threads": cluster.threads,
    }
    return cluster.map(files, PredictWorker, arguments)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog, description=description)
    add_arguments(parser, "folder for panoptic.json, panoptic/ and the files of --save")
    parser.add_argument(
        "--json", metavar="GT.json", help="predict the images listed in this JSON, below the one folder given"
    )
    parser.add_argument("--method", help="fusion rule (default: the checkpoint's)")
    parser.add_argument(
        "--scale", type=positive, help="resize images by this factor (default: to the model's test size)"
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        metavar="N|auto|off",
        help="predict images in tiles of N pixels, at least 64, and stitch them, at --scale 1 if none is given "
        "(default: auto, 1024 for images above eight times the model's test size)",
    )
    parser.add_argument(
        "--overlap",
        type=_overlap,
        default="auto",
        metavar="N|auto",
        help="least overlap of tiles in pixels; larger objects are joined from parts (default: auto, a quarter)",
    )
    parser.add_argument(
        "--mpp",
        type=positive,
        help="resize to this resolution, micrometres per pixel, from the one that the file states; in tiles",
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
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="predict the I-th of N parts of the images, for job arrays; all with one --out, then refine merge OUT",
    )
    add_ray(parser)
    add_image_options(parser, all_pages=True)
    return parser


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.40}: expected I/N, such as 1/8, with I from 1 to N") from None


def _batch(text: str) -> int | None:
    """Convert the value of `--batch`; None stands for "auto"."""
    return None if text == "auto" else count_from(1)(text)


def _tile(text: str) -> int | str:
    """Convert the value of `--tile`."""
    return text if text in ("auto", "off") else count_from(64)(text)


def _overlap(text: str) -> int | None:
    """Convert the value of `--overlap`; None stands for "auto"."""
    return None if text == "auto" else count_from(0)(text)


def _settings(options: argparse.Namespace) -> JobSettings:
    from refine.inference.job_settings import JobSettings
    from refine.inference.tiling.plan import Tiling

    if options.tile == "off" and (options.mpp or options.overlap):
        raise RefineError("--tile off: --mpp and --overlap need tiles; leave them out, or give --tile 1024")
    tile = options.tile if isinstance(options.tile, int) else Tiling.tile
    tiling = None if options.tile == "off" else Tiling(tile, options.overlap, options.scale, options.mpp)
    return JobSettings(
        checkpoint=options.model,
        device=options.device,
        precision=options.precision,
        method=options.method,
        fusion=fusion_changes(options),
        scale=options.scale,
        tiling=tiling,
        always_tile=options.tile not in ("auto", "off") or options.mpp is not None,
        max_detections=options.max_detections,
        reading=image_options(options),
        listed_in=options.json,
    )


def _listed(options: argparse.Namespace) -> list[ImageFile]:
    """List the images of a data set, which lie below the one folder given."""
    from refine.formats.panoptic_json import PanopticJson

    if options.page == "all":
        raise RefineError("--page all: --json lists the images; give one page, or leave out --json")
    folder = location(options.source[0])
    require_paths([options.json, options.source[0]])
    if len(options.source) != 1 or not folder.is_dir():
        raise RefineError("--json: give one folder that holds the images of the data set")
    files = []
    for image_id, image in PanopticJson(options.json, needs=("images", "categories")).images.items():
        assert image.file_name is not None  # checked by the reader
        files.append(ImageFile(folder / image.file_name, image.file_name, image_id, image.size))
    return files
