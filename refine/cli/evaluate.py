"""refine evaluate"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from refine.cli.datasets import add_dataset, coco_options, dataset_config, dataset_paths, names_dataset
from refine.cli.networks import add_model, check_model, class_files, note_remarks
from refine.cli.options import (
    FUSION,
    add_device,
    add_fusion,
    add_image_options,
    add_ray,
    add_threads,
    check_out_file,
    connect,
    count_from,
    fusion_changes,
    print_tables,
    require_paths,
    tell,
)
from refine.cli.parser import Parser


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = _parser(prog, description)
    options = parser.parse_args(arguments)
    rule = [
        None if options.precision == "32" else options.precision,
        options.method,
        options.semantic,
        options.categories,
        options.class_map,
        options.occlusion,
        *(getattr(options, name) for name in FUSION),
    ]
    of_files = [options.gt, options.gt_dir, options.pred, options.pred_dir]
    of_model = [options.checkpoint, options.cityscapes, *coco_options(options)]
    from_files = all(of_files) and not any(of_model) and all(value is None for value in rule)
    from_model = options.checkpoint and names_dataset(options) and not any(of_files)
    if not (from_files or from_model):
        parser.error(
            "give --gt, --gt-dir, --pred and --pred-dir; or --checkpoint with --images, --json and --segments; "
            "or --checkpoint with --cityscapes; --method, --precision, the thresholds, --semantic and "
            "--occlusion need --checkpoint"
        )
    require_paths([*of_files, *dataset_paths(options), options.cityscapes])
    check_out_file(
        "--out",
        options.out,
        [options.gt, options.pred, options.json, options.remap, options.instances, *class_files(options)],
    )
    if options.checkpoint:
        check_model(options)
    if from_files:
        _files(options)
    else:
        _model(options)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog, description=description)
    files = parser.add_argument_group("result files")
    files.add_argument("--gt", help="panoptic JSON of the ground truth")
    files.add_argument("--gt-dir", help="folder of the ground-truth PNGs, or TIFF files of large images")
    files.add_argument("--pred", help="panoptic JSON of the predictions")
    files.add_argument("--pred-dir", help="folder of the predicted PNGs or TIFF files")
    files.add_argument("--workers", type=count_from(1, 1024), help="threads (default: one per core)")
    model = parser.add_argument_group("a model on a data set")
    add_model(model, instances=False)
    add_dataset(model, "for AP")
    model.add_argument("--split", default="val", help="Cityscapes split (default: val)")
    add_device(model)
    add_threads(model)
    model.add_argument("--method", help="fusion rule (default: the checkpoint's)")
    add_fusion(model)
    add_ray(model)
    add_image_options(parser)
    model.add_argument(
        "--ap-detections",
        type=count_from(1),
        help="detections per image that AP uses; 100 for COCO's AP (default: all that the model returns)",
    )
    model.add_argument("--max-images", type=count_from(1), help="evaluate the first N images only", metavar="N")
    parser.add_argument(
        "--out",
        required=True,
        help="JSON file to write; the drawings of --worst replace those of earlier evaluations in worst/ beside it",
    )
    parser.add_argument(
        "--worst",
        type=count_from(0),
        default=5,
        help="number of images with the lowest PQ to list, or for a model to draw: worst/PQ_NAME.png (default: 5)",
    )
    return parser


def _files(options: argparse.Namespace) -> None:
    from refine.errors import printable
    from refine.evaluation.panoptic_files import evaluate_files

    report = evaluate_files(options.gt, options.gt_dir, options.pred, options.pred_dir, workers=options.workers)
    if (Path(options.out).parent / "worst").is_dir():
        from refine.drawing.series import worst_images

        worst_images(Path(options.out)).remove(any_subject=False)  # of a model whose report is replaced
    report.write(options.out)
    print_tables(*report.tables())
    for note in report.notes:
        print(f"note: {note}")
    for image in report.worst(options.worst):
        print(f"worst: {printable(image.file_name)} (image {image.image_id}): PQ {100 * image.pq:.1f}")
    print(f"written to {options.out}")


def _model(options: argparse.Namespace) -> None:
    from refine.data.build import build_dataset
    from refine.inference.drawings import write_worst
    from refine.inference.evaluate import evaluate
    from refine.inference.job_settings import JobSettings
    from refine.inference.limits import ELSEWHERE
    from refine.inference.measures import BoxAndMaskAP, Missable, Quality
    from refine.inference.on_ray import evaluate_on
    from refine.runtime import prepare_cpu, processes

    data = dataset_config(options)
    dataset = build_dataset(data, "--")
    prepare_cpu(options.threads)
    cluster = connect(options)
    device = "cpu" if cluster else options.device
    settings = JobSettings(options.model, device, options.precision, options.method, fusion_changes(options))
    with processes(settings.device or "auto") as group:
        predictor = (settings if group.count == 1 else replace(settings, device=str(group.device))).predictor()
        if group.first:
            note_remarks(predictor.network)
        measures = [Quality(), BoxAndMaskAP(options.ap_detections), Missable(predictor.limits())]
        if cluster is None:
            evaluation = evaluate(predictor, dataset, measures=measures, max_images=options.max_images, group=group)
        else:
            images = min(options.max_images or len(dataset), len(dataset))
            evaluation = evaluate_on(cluster, settings, data, measures, images)
    if not group.first:
        return
    evaluation.write(options.out, precision=options.precision)
    print_tables(*evaluation.report.tables())
    limit = evaluation[BoxAndMaskAP].precision.limit
    for name, value in evaluation[BoxAndMaskAP].compute().items():
        shown = f"{100 * value:.1f} (at most {limit} detections per image)"
        print(f"{name}: {'none, as the data set has no object' if math.isnan(value) else shown}")
    for path in write_worst(evaluation.report, predictor, dataset, Path(options.out), options.worst):
        print(f"worst: {path}")
    for remark in evaluation[Missable].limits.remarks(ELSEWHERE).values():
        tell("note", remark)
    print(f"written to {options.out}")
