"""Training of an occlusion head on the detections of a frozen network of any kind (`refine train-occlusion`).

The network runs once per image; then the head alone is trained on the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from refine import __version__
from refine.bounds import bounded, check_bounds
from refine.checkpoint.occlusion import SavedOcclusion
from refine.data.loader import PanopticDataset
from refine.errors import RefineError
from refine.inference.evaluate import Rule, evaluate
from refine.inference.predictor import Predictor
from refine.modeling.config import OcclusionConfig
from refine.modeling.occlusion import OcclusionHead
from refine.runtime import Processes
from refine.training.config import OptimConfig, RunConfig
from refine.training.pairs import SIDE, ContestedPairs, PairSet
from refine.training.update import TrainingModule, derive_seed

Progress = Callable[[int, str], AbstractContextManager[Callable[[], None]]]


def _silent(total: int, unit: str) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


@dataclass
class OcclusionTraining:
    """Options of the training.

    Attributes:
        min_score: minimum score of the detections, 0-1; low ones give more pairs.
        pair_overlap: minimum overlap ρ of a pair, as a fraction of either mask.
        false_pairs: whether to train also on pairs of a true detection, in front, and a false or duplicate one.
        width: channels of the convolutions; the fully connected layers have twice as many. The paper has 512.
        steps: number of updates.
        batch: pairs per update, each in both orders.
        lr: learning rate of AdamW, which falls to 0 along half a cosine.
        seed: seed of the weights and of all samples.
    """

    min_score: float = bounded(0.05, least=0, most=1)
    pair_overlap: float = bounded(0.2, least=0, most=1)
    false_pairs: bool = False
    width: int = bounded(128, least=1, most=4096)
    steps: int = bounded(1000, least=1)
    batch: int = bounded(32, least=1)
    lr: float = bounded(1e-3, above=0)
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "occlusion training")


def train_occlusion(
    predictor: Predictor,
    dataset: PanopticDataset,
    options: OcclusionTraining,
    provenance: dict[str, Any],
    max_images: int | None = None,
    progress: Progress = _silent,
) -> SavedOcclusion:
    """Train an occlusion head on mask and label for a network, which stays unchanged.

    Args:
        predictor: network with the categories of the data set.
        dataset: data set with ground truth.
        options: options of the training.
        provenance: names of network and data, which are stored with the head.
        max_images: maximum number of images; the first ones are used.
        progress: returns the context of each part, whose function is called after every image or update; its
            arguments are their number, and "images" or "updates".

    Returns:
        Head whose `training` holds the numbers of `pairs` of detections, of `annotated_pairs` and of
        `held_out_pairs`, and the fractions of the latter that the head (`right`) and the scores (`right_by_score`)
        order correctly.

    Raises:
        RefineError: categories differ, a file cannot be read, or no pair is contested.
    """
    rule: Rule = (
        "heuristic",
        predictor.fusion.changed({"score_threshold": options.min_score, "unknown_erasing": False}),
    )
    with progress(min(max_images or len(dataset), len(dataset)), "images") as advance:
        measure = ContestedPairs(
            options.min_score, options.pair_overlap, options.false_pairs, options.seed, advance
        )
        (evaluation,) = evaluate(predictor, dataset, rules=[rule], measures=[measure], max_images=max_images)
    found = evaluation[ContestedPairs]
    detected, annotated, held_out = map(PairSet.joined, (found.trained, found.annotated, found.held_out))
    pairs = PairSet.joined([detected, annotated])
    if not len(pairs.pairs):
        raise RefineError(
            f"no pairs: in {found.images} images, no two masks that match different objects overlap by "
            f"{options.pair_overlap}; give more images, or a network or annotations whose masks overlap"
        )
    with progress(options.steps, "updates") as advance:
        head = _fit(pairs, predictor.categories.num_things, options, predictor.device, advance)
    right, right_by_score = _accuracy(head, held_out)
    training = provenance | {
        "version": __version__,
        "weights": predictor.network.digest(),
        "images": found.images,
        "pairs": len(detected.pairs),
        "annotated_pairs": len(annotated.pairs),
        "held_out_pairs": len(held_out.pairs),
        "right": right,
        "right_by_score": right_by_score,
        "options": asdict(options),
    }
    return SavedOcclusion(head, [c.name for c in predictor.categories if c.isthing], training)


def _fit(
    pairs: PairSet,
    num_things: int,
    options: OcclusionTraining,
    device: torch.device,
    advance: Callable[[], None],
) -> OcclusionHead:
    optim = OptimConfig(
        name="adamw",
        lr=options.lr,
        reference_batch_size=None,
        batch_size=options.batch,
        weight_decay=0.02,
        warmup_steps=options.steps // 20,
        schedule="cosine",
        max_steps=options.steps,
        clip_norm=10.0,
        ema=0.99,
    )
    torch.manual_seed(options.seed)
    widths = OcclusionConfig(["mask", "label"], options.width, 2 * options.width, options.pair_overlap)
    head = OcclusionHead(widths, 0, num_things, SIDE).to(device)
    config = RunConfig(optim=optim, seed=options.seed)
    module = TrainingModule(head, config, Processes(0, 1, device), f"lower the learning rate ({options.lr})")
    for step in range(options.steps):
        generator = torch.Generator().manual_seed(derive_seed(options.seed, step))
        chosen = torch.randint(len(pairs.pairs), (options.batch,), generator=generator)
        flipped = torch.rand(options.batch, generator=generator) < 0.5
        instances, some = pairs.batch(chosen, flipped, device)
        module.update([([instances], [some])])
        advance()
    trained = module.learner.evaluated
    assert isinstance(trained, OcclusionHead)
    return trained.cpu().eval().requires_grad_(True)


@torch.inference_mode()
def _accuracy(head: OcclusionHead, pairs: PairSet) -> tuple[float | None, float | None]:
    """Return the fractions of pairs that the head and the scores order correctly; None without pairs."""
    if not len(pairs.pairs):
        return None, None
    right = []
    for chosen in torch.arange(len(pairs.pairs)).split(64):
        instances, some = pairs.batch(chosen, torch.zeros(len(chosen), dtype=torch.bool), torch.device("cpu"))
        right.append(head(instances, some) > head(instances, some.flip(1)))
    front, back = pairs.scores[pairs.pairs].unbind(1)
    return float(torch.cat(right).float().mean()), float((front > back).float().mean())
