"""refine train-occlusion"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields

from refine.cli.datasets import add_dataset, dataset_config, dataset_paths, names_dataset
from refine.cli.networks import add_model, check_model, note_remarks
from refine.cli.options import (
    add_image_options,
    add_threads,
    count_from,
    positive,
    refuse_overwriting,
    require_paths,
    tell,
)


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = _parser(prog, description)
    options = parser.parse_args(arguments)
    if not names_dataset(options):
        parser.error("give --images, --json and --segments, or --cityscapes without the options of the others")
    require_paths([*dataset_paths(options), options.cityscapes])
    check_model(options)
    read = [*dataset_paths(options), options.cityscapes, *options.model.instances, *options.model.semantic]
    refuse_overwriting("--out", [options.out], read)

    from refine.checkpoint.occlusion import save_occlusion
    from refine.data.build import build_dataset
    from refine.inference.predictor import Predictor
    from refine.runtime import set_threads
    from refine.training.occlusion import OcclusionTraining, train_occlusion

    training = OcclusionTraining(**{f.name: getattr(options, f.name) for f in fields(OcclusionTraining)})
    dataset = build_dataset(dataset_config(options))
    set_threads(options.threads)
    predictor = Predictor(options.model, device=options.device)
    note_remarks(predictor.network)
    tell("note", f"collecting pairs in {min(options.max_images or len(dataset), len(dataset))} images")
    provenance = {"model": str(options.model), "data": options.json or f"{options.cityscapes} ({options.split})"}
    saved = train_occlusion(predictor, dataset, training, provenance, options.max_images, _Progress(options.steps))
    save_occlusion(options.out, saved)
    numbers = saved.training
    print(f"trained on {numbers['pairs']} pairs of detections and {numbers['annotated_pairs']} of annotations")
    if numbers["held_out_pairs"]:
        print(
            f"{numbers['held_out_pairs']} pairs in held-out images: the head orders {100 * numbers['right']:.0f}% "
            f"correctly, the scores {100 * numbers['right_by_score']:.0f}%"
        )
    print(f"written to {options.out}; use it with --occlusion {options.out}")


class _Progress:
    """Prints the loss every 30 seconds, or on a terminal on one line."""

    def __init__(self, steps: int) -> None:
        self.steps, self.terminal, self.told = steps, sys.stderr.isatty(), time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        if not self.terminal and step < self.steps and time.monotonic() < self.told + 30:
            return
        self.told = time.monotonic()
        start, end = ("\r", "\n" if step == self.steps else "") if self.terminal else ("", "\n")
        print(f"{start}step {step} of {self.steps}, loss {loss:.3f}", end=end, file=sys.stderr, flush=True)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        "--min-score", type=float, default=0.05, help="minimum score of the detections, 0-1 (default: %(default)s)"
    )
    training.add_argument(
        "--pair-overlap", type=float, default=0.2, help="minimum overlap, fraction of a mask (default: %(default)s)"
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
