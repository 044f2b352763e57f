"""Windows of an image that is resized for the network lie on the pixel grid of the whole resized image."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.checkpoint.folder import SavedModel
from refine.data.resize import resize
from refine.formats.windows import TensorWindows
from refine.inference.predictor import Predictor
from refine.inference.tiling.plan import NO_LIMIT, Tiling, plan, resized_size
from refine.inference.tiling.resample import read_part
from refine.modeling.model import PanopticModel
from refine.modeling.output import NetworkOutput
from refine.structures import ImageBatch, Instances
from refine.structures.targets import mask_boxes
from tests.helpers.scenes import CATEGORIES, THINGS
from tests.helpers.tiny_network import tiny_config


def smooth(seed: int, size: tuple[int, int]) -> torch.Tensor:
    """Return an image of random colours that change over some pixels: Tensor[3, H, W] uint8."""
    coarse = torch.rand(1, 3, -(-size[0] // 6), -(-size[1] // 6), generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size, mode="bicubic")[0] * 200).clamp(0, 220).to(torch.uint8)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    size=st.tuples(st.integers(12, 200), st.integers(12, 200)),
    scale=st.floats(0.2, 3),
    tile=st.sampled_from([70, 128]),
)
def test_windows_are_those_of_the_resized_image(seed, size, scale, tile):
    image, resized = smooth(seed, size), resized_size(size, scale)
    whole = resize(image, resized)
    for window in plan(size, Tiling(tile), scale):
        part = read_part(TensorWindows(image), window, resized)
        top, left, bottom, right = window.resized
        difference = part.pixels.int() - whole[:, top:bottom, left:right].int()
        assert difference.abs().max() <= 2  # PyTorch and Pillow round differently
        assert part.size == window.size


class LocalModel(PanopticModel):
    """Model whose semantics depend on the 4 × 4 pixels of each cell, and that finds one white rectangle."""

    def predict(self, images: ImageBatch, min_score: float = 0.0) -> list[NetworkOutput]:
        outputs = []
        for image, size in zip(images.tensor, images.sizes, strict=True):
            white = (image[:, : size[0], : size[1]].amin(0) > 2)[None]  # images are normalised
            boxes = mask_boxes(white)[: int(white.any())]
            found = Instances(
                size, boxes, *torch.ones(2, len(boxes)).unbind(), roi_masks=torch.ones(len(boxes), 7, 7)
            )
            found.labels = found.labels.long() * 0
            logits = F.avg_pool2d(image[None], 4)[0]
            outputs.append(NetworkOutput(found, logits.repeat(2, 1, 1)[: self.num_classes] * 5, size))
        return outputs


@pytest.mark.parametrize("scale", [0.7, 1.3])
def test_tiles_equal_the_whole_image(scale):
    model = LocalModel(tiny_config(0, {}), THINGS, len(CATEGORIES))
    fusion = {"stuff_area": 0, "unknown_erasing": False, "score_threshold": 0.5}
    predictor = Predictor(SavedModel(model.eval(), CATEGORIES, (64, 96)), fusion=fusion)
    image = smooth(0, (211, 307))
    image[:, 101:140, 83:117] = 255
    predictor.test_size = (round(min(image.shape[1:]) * scale), NO_LIMIT)
    whole = predictor(image)
    predictor.tiling = Tiling(128, 64, scale)
    tiled = predictor(image)
    assert [s.category_id for s in tiled.segments] == [s.category_id for s in whole.segments]
    (one,), (other,) = ([s for s in result.segments if s.isthing] for result in (tiled, whole))
    assert one.bbox == other.bbox
    assert (tiled.segment_ids != whole.segment_ids).float().mean() < 2e-3  # rounding of pixels
