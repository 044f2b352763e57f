"""Order of overlapping pairs of a true and a false detection under several fusion rules.

    python benchmarks/false_pairs.py CHECKPOINT configs/scenes_whole.yaml --images 250

The labels of the occlusion head and the metric `pairs_right` include only pairs of two true detections. At test,
one of an overlapping pair is often a false detection, a fragment or a duplicate, which should lie behind. The
checkpoint needs an occlusion head; counted are pairs that overlap by the fraction ρ of either mask and pass the
score threshold.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from refine.data.build import build_dataset
from refine.data.loader import PanopticDataset
from refine.inference.predictor import Predictor
from refine.modeling.occlusion import match_detections
from refine.ops.masks import overlapping, paste_masks
from refine.ops.penalty import in_front
from refine.training.config import load_run


@torch.inference_mode()
def count(predictor: Predictor, dataset: PanopticDataset, image: int) -> Tensor:
    """Count pairs of a true and a false detection, and those with the true one in front by score, O and SOE."""
    pixels, segments = dataset[image]
    targets = segments.targets(dataset.categories.num_things, *dataset.name(image))
    instances = predictor.predict_raw([pixels])[0].instances
    instances = instances[instances.scores >= predictor.fusion.score_threshold]
    masks = paste_masks(instances.roi_masks.float(), instances.boxes, targets.size).flatten(1)
    true = match_detections(masks, instances.labels, targets) >= 0
    overlap = overlapping(masks.float() @ masks.float().T, predictor.fusion.pair_overlap)
    pairs = torch.nonzero(overlap & true[:, None] & ~true)
    occlusion = predictor.fusion_heads()["occlusion"](instances, pairs)
    scores, sigma = instances.scores, predictor.fusion.sigma
    rules = (scores[:, None] > scores, occlusion > occlusion.T, in_front(scores, occlusion, sigma))
    return torch.tensor([len(pairs), *(int(rule[pairs[:, 0], pairs[:, 1]].sum()) for rule in rules)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="model folder")
    parser.add_argument("config", help="config YAML, whose data.val is used")
    parser.add_argument("--images", type=int, default=250, help="number of images (default: 250)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor(options.checkpoint, device="cpu")
    data = load_run(options.config).data.val
    assert data is not None
    dataset = build_dataset(data, "data.val")
    totals = torch.stack([count(predictor, dataset, n) for n in range(min(options.images, len(dataset)))]).sum(0)
    pairs, *right = totals.tolist()
    print(f"{pairs} pairs of a true and a false detection; the true one in front:")
    for rule, number in zip(("score", "O (strong baseline)", "SOE"), right, strict=True):
        print(f"  {rule}: {100 * number / max(pairs, 1):.0f}%")


if __name__ == "__main__":
    main()
