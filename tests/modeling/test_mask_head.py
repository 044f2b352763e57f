"""Mask head and its targets."""

import torch
import torch.nn.functional as F

from refine.modeling.config import MaskHeadConfig
from refine.modeling.mask_head import MaskHead, add_semantics, mask_targets

THINGS, CLASSES, CHANNELS = 3, 5, 8


def test_mask_head_is_one_convolution_and_takes_the_class_channel():
    head = MaskHead(MaskHeadConfig(num_convs=2, channels=8), CHANNELS, THINGS, CLASSES)
    torch.nn.init.normal_(head.predictor.weight)
    f, p, labels = torch.randn(4, CHANNELS, 5, 5), torch.randn(4, CLASSES, 5, 5), torch.tensor([0, 2, 1, 2])
    weight = torch.cat([head.from_features.weight, head.from_semantic.weight], 1)
    x = F.relu(head.norm(F.conv2d(torch.cat([f, p], 1), weight, padding=1)))
    expected = head.predictor(F.relu(head.deconv(head.convs(x))))[torch.arange(4), labels]
    torch.testing.assert_close(head(head.from_features(f), labels, p)[0], expected, atol=1e-5, rtol=1e-4)


def test_chance_and_certainty_of_the_semantics():
    masks = torch.tensor([[[0.2, 0.8], [0.0, 1.0]]])
    limited = masks.clamp(1e-4, 1 - 1e-4)
    probabilities, labels = torch.zeros(1, 5, 2, 2), torch.tensor([3])
    torch.testing.assert_close(add_semantics(masks, probabilities, labels, 0.0), limited)
    probabilities[:, 3] = 0.2
    torch.testing.assert_close(add_semantics(masks, probabilities, labels, 0.7), limited)
    probabilities[:, 3] = 1
    certain = add_semantics(masks, probabilities, labels, 0.5)
    assert certain.isfinite().all()
    assert (certain[0, 0] > masks[0, 0]).all()


def test_mask_targets_crop_the_matched_mask():
    # A mask that fills the left half of the box 4..12 × 4..12.
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[1, 4:12, 4:8] = True
    crop = mask_targets([masks], [torch.tensor([[4.0, 4, 12, 12]])], [torch.tensor([1])], 4)
    assert crop.tolist() == [[[1, 1, 0, 0]] * 4]
