"""Strides of weights."""

import torch

from refine.ops.strides import plain_strides


def test_weights_of_1x1_convolutions_lose_the_layout():
    weight = torch.rand(8, 4, 1, 1)
    converted = weight.to(memory_format=torch.channels_last)
    assert converted.contiguous().stride() == converted.stride() != weight.stride()  # it counts as contiguous
    assert plain_strides(converted).stride() == weight.stride()
    assert torch.equal(plain_strides(converted), weight)
    strided = torch.rand(4, 8).T
    assert torch.equal(plain_strides(strided), strided)
