"""Results of the shipped model with batches, other memory layouts, other precisions and compilation."""

import shutil

import pytest
import torch
from mahotas.demos import load

from refine.evaluation.pq import PanopticQuality
from refine.inference.predictor import Predictor, to_tensor


def predictor(**options):
    made = Predictor("nuclei", device="cpu", **options)
    made.test_size = (256, 512)  # quick
    return made


@pytest.fixture(scope="module")
def images():
    """Two crops of a real micrograph."""
    image = to_tensor(load("nuclear"))
    return [image[:, :420, :420].contiguous(), image[:, 500:920, 600:1020].contiguous()]


@pytest.fixture(scope="module")
def expected(images):
    """Results of single images at full precision."""
    results = [predictor()(image) for image in images]
    assert all(len(result) > 5 for result in results)
    return results


def agreement(results, expected):
    """Return PQ of `results` with `expected` as ground truth, 0-1."""
    quality = PanopticQuality(expected[0].categories)
    for result, truth in zip(results, expected, strict=True):
        quality.update(truth.segment_ids, truth.segments, result.segment_ids, result.segments)
    return quality.compute().pq


def test_two_images_at_a_time(images, expected):
    batched = predictor()
    assert agreement([batched.fuse(raw) for raw in batched.predict_raw(images)], expected) > 0.995


def test_other_memory_layout(images, expected):
    other = predictor()
    layout = torch.contiguous_format if other.model.config.channels_last else torch.channels_last
    other.model.to(memory_format=layout)
    assert agreement([other(image) for image in images], expected) > 0.995


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.9), ("fp16", 0.98)])
def test_half_precision(precision, least, images, expected):
    assert agreement([predictor(precision=precision)(image) for image in images], expected) > least


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(images, expected):
    assert agreement([predictor(compiled=True)(image) for image in images], expected) > 0.995
