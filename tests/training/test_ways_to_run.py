"""The shipped model, run in other ways than by default: what changes in its results, and by how little."""

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
def pictures():
    """Two cuts of a real micrograph."""
    picture = to_tensor(load("nuclear"))
    return [picture[:, :420, :420].contiguous(), picture[:, 500:920, 600:1020].contiguous()]


@pytest.fixture(scope="module")
def expected(pictures):
    """Alone, at full precision."""
    results = [predictor()(picture) for picture in pictures]
    assert all(len(result) > 5 for result in results)
    return results


def agreement(results, expected):
    """PQ of `results` with `expected` as the truth, 0-1."""
    quality = PanopticQuality(expected[0].categories)
    for result, truth in zip(results, expected, strict=True):
        quality.update(truth.segment_ids, truth.segments, result.segment_ids, result.segments)
    return quality.compute().pq


def test_two_pictures_at_a_time(pictures, expected):
    ours = predictor()
    assert agreement([ours.fuse(raw) for raw in ours.predict_raw(pictures)], expected) > 0.995


def test_other_memory_layout(pictures, expected):
    ours = predictor()
    layout = torch.contiguous_format if ours.model.config.channels_last else torch.channels_last
    ours.model.to(memory_format=layout)
    assert agreement([ours(picture) for picture in pictures], expected) > 0.995


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.9), ("fp16", 0.98)])
def test_half_precision(precision, least, pictures, expected):
    assert agreement([predictor(precision=precision)(picture) for picture in pictures], expected) > least


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(pictures, expected):
    assert agreement([predictor(compiled=True)(picture) for picture in pictures], expected) > 0.995
