"""The other images of a batch, padding and the score threshold change no prediction of the network."""

from dataclasses import replace

import pytest
import torch
from helpers.two_squares import CLASSES, THINGS, scene, tiny

from refine.modeling.model import PanopticModel
from refine.modeling.norms import valid_pixels
from refine.modeling.semantic_head import pad_labels, semantic_loss


def test_batching_changes_nothing():
    model = PanopticModel(tiny(2, box_head=replace(tiny().box_head, score_threshold=0.0)), THINGS, CLASSES).eval()
    image = scene()[0]
    batch = model.predict(model.image_batch([image, image.flip(2)]))
    for single, of_batch in zip((image, image.flip(2)), batch, strict=True):
        alone = model.predict(model.image_batch([single]))[0]
        torch.testing.assert_close(of_batch.sem_logits, alone.sem_logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(of_batch.instances.scores, alone.instances.scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("iterations", [0, 2])
def test_a_larger_neighbour_changes_nothing(iterations):
    """Statistics and upsampling ignore the padding."""
    torch.manual_seed(0)
    box_head = replace(tiny().box_head, score_threshold=1.0)
    model = PanopticModel(tiny(iterations, box_head=box_head), THINGS, CLASSES).eval()
    small, large = scene()[0], torch.randint(0, 255, (3, 192, 256), dtype=torch.uint8)
    (alone,), together = model.predict(model.image_batch([small])), model.predict(model.image_batch([small, large]))
    torch.testing.assert_close(together[0].sem_logits[:, :16, :24], alone.sem_logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
def test_padding_changes_nothing_of_what_is_learnt(size):
    """Nothing, whether sides are multiples of 32 or not."""
    torch.manual_seed(0)
    model = PanopticModel(tiny(2), THINGS, CLASSES)
    image, targets = scene()
    image, sem_seg = image[:, : size[0], : size[1]], targets.sem_seg[: size[0], : size[1]]
    one, padded = model.image_batch([image]), model.image_batch([image, image.new_zeros(3, 192, 256)])
    padded.tensor, padded.sizes = padded.tensor[:1], padded.sizes[:1]
    losses = []
    for batch in (one, padded):
        with valid_pixels(batch):
            features = model.semantic_head.features(model.pyramid(batch)[:4])
        height, width = batch.tensor.shape[2:]
        labels = pad_labels([sem_seg], (height, width))
        losses.append(semantic_loss(model.semantic_head(features), labels, full_size=False))
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 2])
def test_detections_below_min_score_change_nothing(iterations):
    config = tiny(iterations, box_head=replace(tiny().box_head, score_threshold=0.0))
    model = PanopticModel(config, THINGS, CLASSES).eval()
    batch = model.image_batch([scene()[0]])
    scores = model.predict(batch)[0].instances.scores
    low, high = scores.quantile(0.3), scores.quantile(0.6)
    config.ibpp.score_threshold = float(low)  # painted on the canvas even if below min_score
    for wanted, kept in (
        (high, low if iterations else high),
        (low, low),
        (scores.quantile(0.1), scores.quantile(0.1)),
    ):
        (whole,), (part,) = model.predict(batch), model.predict(batch, float(wanted))
        count = int((scores >= kept).sum())
        assert 0 < count == len(part.instances) < len(scores)
        torch.testing.assert_close(part.sem_logits, whole.sem_logits, atol=1e-5, rtol=1e-4)
        masks = whole.instances.roi_masks[:count]
        torch.testing.assert_close(part.instances.roi_masks, masks, atol=1e-5, rtol=1e-4)
