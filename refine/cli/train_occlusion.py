"""refine train-occlusion"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from refine.cli.datasets import add_dataset, dataset_config, dataset_paths, names_dataset
from refine.cli.images import progress
from refine.cli.networks import add_model, check_model, note_remarks
from refine.cli.options import (
    add_image_options,
    add_threads,
    check_out_folder,
    count_from,
    fraction,
    positive,
    require_paths,
)
from refine.cli.parser import Parser
from refine.errors import counted


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = _parser(prog, description)
    options = parser.parse_args(arguments)
    if not names_dataset(options):
        parser.error("give --images, --json and --segments, or --cityscapes without the options of the others")
    require_paths([*dataset_paths(options), options.cityscapes])
    check_model(options)
    read = [*dataset_paths(options), options.cityscapes, *options.model.instances, *options.model.semantic]
    check_out_folder(options.out, read)

    from refine.checkpoint.occlusion import check_out, save_occlusion
    from refine.data.build import build_dataset
    from refine.inference.predictor import Predictor
    from refine.runtime import prepare_cpu
    from refine.training.occlusion import OcclusionTraining, train_occlusion

    check_out(options.out)
    training = OcclusionTraining(**{f.name: getattr(options, f.name) for f in fields(OcclusionTraining)})
    dataset = build_dataset(dataset_config(options), "--")
    prepare_cpu(options.threads)
    predictor = Predictor(options.model, device=options.device)
    note_remarks(predictor.network)
    provenance = {"model": str(options.model), "data": options.json or f"{options.cityscapes} ({options.split})"}
    saved = train_occlusion(predictor, dataset, training, provenance, options.max_images, progress)
    save_occlusion(options.out, saved)
    numbers = saved.training
    pairs = counted(numbers["pairs"], "pair")
    print(f"trained on {pairs} of detections and {numbers['annotated_pairs']} of annotations")
    print(f"{comparison(numbers)}\nwritten to {options.out}")


def comparison(numbers: dict[str, Any]) -> str:
    """Return a line that says whether the head orders held-out pairs better than the scores."""
    pairs, right, by_score = (numbers[name] for name in ("held_out_pairs", "right", "right_by_score"))
    if not pairs:
        return (
            "no pairs in held-out images (every tenth image): it is not known whether the head orders objects "
            "better than the scores; give more images"
        )
    found = (
        f"{counted(pairs, 'pair')} in held-out images: the head orders {100 * right:.0f}% correctly, "
        f"the scores {100 * by_score:.0f}%"
    )
    if right > by_score:
        return f"{found}; use it with --occlusion"
    return (
        f"{found}; the head is no better than the scores, so --method heuristic, without it, is the better choice"
    )


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog,
        description=f"{description}. The network stays as it is and runs once per image. A run that is stopped "
        "writes nothing and cannot be resumed.",
    )
    add_model(parser, instances=False, occlusion=False)
    data = parser.add_argument_group("training data")
    add_dataset(data, "for pairs of annotations")
    data.add_argument("--split", default="train", help="Cityscapes split (default: train)")
    data.add_argument("--max-images", type=count_from(1), help="use the first N images only", metavar="N")
    add_image_options(parser)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--min-score",
        type=fraction,
        default=0.05,
        help="minimum score of the detections, 0-1 (default: %(default)s)",
    )
    training.add_argument(
        "--pair-overlap",
        type=fraction,
        default=0.2,
        help="minimum overlap, fraction of a mask (default: %(default)s)",
    )
    training.add_argument(
        "--false-pairs", action="store_true", help="also train true detections to lie in front of false ones"
    )
    training.add_argument(
        "--width", type=count_from(1, 4096), default=128, help="channels; the paper has 512 (default: %(default)s)"
    )
    training.add_argument("--steps", type=count_from(1), default=1000, help="updates (default: %(default)s)")
    training.add_argument("--batch", type=count_from(1), default=32, help="pairs per update (default: %(default)s)")
    training.add_argument("--lr", type=positive, default=1e-3, help="learning rate of AdamW (default: %(default)s)")
    training.add_argument("--seed", type=count_from(0), default=0, help="(default: %(default)s)")
    training.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    add_threads(training)
    parser.add_argument("-o", "--out", required=True, help="folder of the head to write")
    return parser
