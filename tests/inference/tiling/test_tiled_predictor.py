"""`Predictor(tile=…)`, with bad tiles and scales, and with a network that normalises over the image."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from refine.checkpoint.folder import SavedModel
from refine.errors import RefineError
from refine.formats.windows import TensorWindows
from refine.inference.predictor import Predictor
from refine.inference.tiling import predict
from refine.inference.tiling.plan import ALIGN, Tiling, plan, resized_size
from refine.modeling.config import BackboneConfig, BoxHeadConfig, IBPPConfig, ModelConfig, SemanticHeadConfig
from refine.modeling.model import PanopticModel
from refine.modeling.norms import SharedStatistics, conv_norm, valid_pixels
from refine.networks.compose import Compose
from refine.networks.hub.network import HubNetwork
from refine.networks.native import NativeNetwork
from refine.networks.onnx import OnnxNetwork
from refine.structures import ImageBatch, Prediction
from tests.helpers.painted import PaintedNetwork, painted


@settings(deadline=None, max_examples=50)
@given(
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    tile=st.integers(64, 900),
    divisor=st.integers(2, 9),
    scale=st.floats(0.3, 3),
)
def test_windows(size, tile, divisor, scale):
    overlap = tile // divisor
    windows, resized = plan(size, Tiling(tile, overlap), scale), resized_size(size, scale)
    area = 0
    for w in windows:
        top, left, bottom, right = w.core
        assert 0 <= w.place[0] <= top < bottom <= w.place[2] <= size[0]
        assert 0 <= w.place[1] <= left < right <= w.place[3] <= size[1]
        area += (bottom - top) * (right - left)
        assert max(w.resized_size) <= tile
        for n, (length, end) in enumerate(zip(size, resized, strict=True)):
            # The window shows the pixels of the image that its resized pixels touch, and no others.
            begin_shown, end_shown = (w.resized[n + m] * length / end for m in (0, 2))
            assert begin_shown - 1 < w.place[n] <= begin_shown + 1e-9
            assert end_shown - 1e-9 <= w.place[n + 2] < end_shown + 1
            if tile - overlap >= ALIGN:
                assert w.resized[n] % ALIGN == 0
                assert w.resized_size[n] > min(tile - ALIGN, end - 1)  # none shows much less than the others
            # A core is half an overlap away from every border that is not one of the image.
            for m, image_border in ((n, 0), (n + 2, length)):
                inwards = abs(w.place[m] - w.core[m]) * end / length
                assert w.place[m] == image_border or inwards >= overlap / 2 - 2 * end / length
    assert area == size[0] * size[1]


def test_no_window_is_empty_at_large_scales():
    for tile, overlap, scale in ((64, None, 64), (64, None, 40), (64, 0, 5), (100, None, 99)):
        for length in (*range(1, 8), 19, 40, 59):
            windows = plan((length, length), Tiling(tile, overlap), scale)
            assert all(min(w.size) > 0 for w in windows)
            assert all(w.place[0] <= w.core[0] <= w.core[2] <= w.place[2] for w in windows)
            areas = [(w.core[2] - w.core[0]) * (w.core[3] - w.core[1]) for w in windows]
            assert min(areas) >= 0
            assert sum(areas) == length**2
    with pytest.raises(RefineError, match="--tile 64: at scale 300 it is smaller than a pixel of the image"):
        plan((9, 9), Tiling(64), 300)


def test_predictor_with_tiles():
    image = painted(3, (60, 75), 9, 30)
    whole = Predictor(PaintedNetwork())(image)
    tiled = Predictor(PaintedNetwork(), tile=32)
    for given_image in (image, np.ascontiguousarray(image.permute(1, 2, 0).numpy())):
        assert torch.equal(tiled(given_image).segment_ids, whole.segment_ids)
    one, two = tiled([image, image[:, :20, :20]])
    assert torch.equal(one.segment_ids, whole.segment_ids)
    assert two.segment_ids.shape == (20, 20)


def test_bad_tiles():
    with pytest.raises(RefineError, match=r"--tile 100: expected at least twice the overlap of 64.*--tile 128"):
        Tiling(100, 64)
    with pytest.raises(RefineError, match="--mpp: cannot be combined with --scale"):
        Tiling(scale=1.0, mpp=0.5)
    image = TensorWindows(painted(0, (20, 20), 1, 9), mpp=0.25)
    assert Tiling(mpp=0.5).scale_for(image.mpp, "a.tif") == 0.5
    predictor = Predictor(PaintedNetwork())
    with pytest.raises(RefineError, match=r"a\.tif: --mpp needs the image's resolution"):
        predict.predict_tiles(predictor, TensorWindows(painted(0, (9, 9), 1, 9)), Tiling(mpp=0.5), name="a.tif")
    with pytest.raises(RefineError, match=r"a\.tif: a scale of 0\.5 is not possible"):
        predict.predict_tiles(predictor, image, Tiling(mpp=0.5), name="a.tif")


def test_networks_that_resize_tiles_are_refused():
    def made(kind: type) -> PaintedNetwork:
        """A painted network that counts as `kind`, without its files."""
        return type("Made", (PaintedNetwork, kind), {"read": None})()

    native = PaintedNetwork()
    native.test_size = (64, 96)
    image, huge = painted(3, (60, 75), 9, 30), (20_000, 20_000)
    for network, message in (
        (made(OnnxNetwork), "an ONNX file resizes each tile itself; use the checkpoint"),
        (made(HubNetwork), "this model resizes each tile itself"),
        (Compose([PaintedNetwork()], [native]), "this model resizes each tile itself"),
        (Compose([made(OnnxNetwork)]), "this model resizes each tile itself"),
    ):
        with pytest.raises(RefineError, match=f"^the image: {message}"):
            Predictor(network, tile=32)(image)
        assert not predict.is_large(huge, Predictor(network), Tiling())
    for network in (PaintedNetwork(), Compose([PaintedNetwork()])):  # take images at their size
        assert Predictor(network, tile=32)(image).segment_ids.shape == (60, 75)
        assert predict.is_large(huge, Predictor(network), Tiling())


class NormalisingNetwork(PaintedNetwork):
    """Its confidence depends on each pixel and, through two GroupNorms, on all of its image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(conv_norm(width, 8, kernel=1) for width in (3, 8)))

    def predict(self, images: Sequence[torch.Tensor], min_score: float = 0.0) -> list[Prediction]:
        batch = ImageBatch.from_images(images, torch.zeros(3), torch.full((3,), 255.0))
        with torch.no_grad(), valid_pixels(batch):
            maps = self.layers(batch.tensor)[:, 0].sigmoid()
        found = super().predict(images, min_score)
        parts = [m[: i.shape[1], : i.shape[2]] for m, i in zip(maps, images, strict=True)]
        return [replace(p, sem_confidence=m) for p, m in zip(found, parts, strict=True)]


def test_windows_are_normalised_like_the_whole_image(monkeypatch):
    network = NormalisingNetwork()
    image = painted(1, (96, 128), 9, 60)
    image[:, :, 64:] //= 4  # the two halves have other statistics
    whole = network.predict([image])[0].sem_confidence
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(predict, "fuse_bands", lambda instances, read, *_, **__: seen.append(read(0, 96)[1]))

    def largest_difference() -> float:
        predict.predict_tiles(Predictor(network), TensorWindows(image), Tiling(64, 16))
        return float((seen[-1] - whole).abs().max())

    assert largest_difference() < 1e-5  # measured on all windows, whose cores are the image
    monkeypatch.setattr(predict, "MEASURED", 5)
    assert largest_difference() > 1e-3
    monkeypatch.setattr(predict, "_measure", lambda *_: None)
    assert largest_difference() > 0.1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_shared_statistics_in_half_precision(precision):
    """The statistics stay in float32, as the parameters: PyTorch refuses a mixture of both."""
    norm = conv_norm(3, 8)
    x, dtype = torch.randn(1, 3, 16, 16), {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    batch = ImageBatch(torch.zeros(1, 3, 16, 16), [(16, 16)])
    statistics = SharedStatistics()
    with torch.no_grad(), valid_pixels(batch):
        with statistics.measured():
            expected = norm(x)
        with torch.autocast("cpu", dtype):
            with statistics.measured():
                norm(x)
            with statistics.applied():
                found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.02)


def test_statistics_of_batches_are_those_of_all_images():
    torch.manual_seed(0)
    layers = nn.Sequential(conv_norm(3, 8, kernel=1), conv_norm(8, 8, kernel=1))
    images = [torch.rand(3, 64, 64) * 100 * (n + 1) for n in range(4)]

    def run(images: list[torch.Tensor]) -> torch.Tensor:
        batch = ImageBatch.from_images(images, torch.zeros(3), torch.ones(3))
        with torch.no_grad(), valid_pixels(batch):
            return layers(batch.tensor)

    whole, shared = run([torch.cat(images, 2)]), SharedStatistics()
    assert not shared
    for _ in range(2):
        with shared.measured():
            run(images[:2])
            run(images[2:])
    assert shared
    with shared.applied():
        torch.testing.assert_close(run(images[1:2]), whole[..., 64:128], rtol=1e-4, atol=1e-4)
    assert (run(images[1:2]) - whole[..., 64:128]).abs().max() > 0.1


def test_parts_of_each_image_of_a_batch_are_measured():
    layer, images = conv_norm(3, 8, kernel=1), [torch.rand(3, 64, 64) * 100 * (n + 1) for n in range(3)]
    parts = [(0.0, 0.0, 1.0, 0.5), (0.25, 0.0, 1.0, 1.0)]

    def run(numbers: list[int]) -> torch.Tensor:
        batch = ImageBatch.from_images([images[n] for n in numbers], torch.zeros(3), torch.ones(3))
        with torch.no_grad(), valid_pixels(batch):
            return layer(batch.tensor)

    found = []
    for batches in ([[0, 1]], [[0], [1]]):
        shared = SharedStatistics()
        with shared.measured():
            for numbers in batches:
                shared.counted = [parts[n] for n in numbers]
                run(numbers)
        with shared.applied():
            found.append(run([2]))
    torch.testing.assert_close(*found)
    assert (found[0] - run([2])).abs().max() > 0.1


def test_the_size_of_batches_does_not_change_the_statistics():
    """Deeper layers depend on how the first ones were normalised when they were measured."""
    torch.manual_seed(0)
    config = ModelConfig(
        BackboneConfig("resnet18", None, norm="gn"),
        fpn_channels=16,
        box_head=BoxHeadConfig(num_convs=1, conv_channels=16, fc_channels=16),
        semantic_head=SemanticHeadConfig(channels=16),
        ibpp=IBPPConfig(0),
    )
    categories, size = PaintedNetwork.categories, (64, 256)
    model = PanopticModel(config, categories.num_things, len(categories)).eval()
    network = NativeNetwork(SavedModel(model, categories, (64, 128)))
    image = (torch.rand(3, *size) * torch.linspace(10, 250, size[1])).byte()
    read = partial(predict.read_part, TensorWindows(image), resized=size)
    found = []
    for at_once in (1, 4):
        statistics = SharedStatistics()
        predict._measure(statistics, network, read, plan(size, Tiling(64), 1.0), 1.0, at_once)
        found.append([torch.cat(both) for calls in statistics._moments.values() for both in calls])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
