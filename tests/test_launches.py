"""Kernels and waits on a GPU, which must not grow with the image, or with its objects, pairs and classes.

The code for GPUs runs on the CPU; see `tests.helpers.launches`.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from refine.checkpoint.folder import SavedModel
from refine.experiments.cost import random_model
from refine.formats.windows import TensorWindows
from refine.fusion import FusionConfig, fuse
from refine.inference.predictor import Predictor
from refine.inference.tiling.plan import Tiling
from refine.inference.tiling.predict import predict_tiles
from refine.modeling.config import OcclusionConfig
from refine.modeling.occlusion import OcclusionHead
from refine.ops.boxes import nms
from refine.ops.masks import dense_runs, shared_areas
from refine.ops.roi import Sampling, roi_align_levels
from refine.ops.semantic import semantic_map
from tests.helpers.launches import GPU, Launches, count_launches
from tests.helpers.scenes import CATEGORIES, scene
from tests.helpers.tiny_network import tiny_config


def numbers(launches: Launches) -> tuple[int, int]:
    return launches.kernels.total(), launches.waits.total()


def test_operations_are_counted():
    values = torch.rand(6, 5)
    with count_launches() as launches:
        assert values.device.type == "cuda"
        chosen = values[values > 0.5]  # compares; searches, waits and gathers
        total = (chosen.cpu() * 2 + torch.ones(len(chosen))).sum()  # on the CPU, after a copy
        assert total.device.type == "cpu"
        assert int(torch.arange(3, device=values.device)[1]) == 1  # makes; a copy
    assert launches.kernels == {"gt": 1, "index": 1, "arange": 1, "_local_scalar_dense": 1}
    assert launches.waits == {"index": 1, "to": 1, "_local_scalar_dense": 1}


def test_copies_are_counted():
    values = torch.rand(6)
    with count_launches() as launches:
        factors = torch.tensor([2.0] * 6, device=values.device)  # waits, as a copy of what lies in Python
        zero = torch.zeros((), device=values.device)
        values.mul_(factors).index_put_((values > 1,), zero)  # one value is filled in without a search
        values.tolist()
        values.to("cpu", non_blocking=True).numpy()
        with pytest.raises(TypeError, match="a tensor on a GPU"):
            values.numpy()
    assert launches.kernels == {"zeros": 1, "mul_": 1, "gt": 1, "index_put_": 1}
    assert launches.waits == Counter(tensor=1, tolist=1)


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    config = tiny_config(1, {}, occlusion=OcclusionConfig(cues=["mask", "label"], conv_channels=8, fc_channels=8))
    saved = SavedModel(random_model(config, 3, 6), CATEGORIES, method="soe")
    made = Predictor(saved, fusion=FusionConfig(score_threshold=0.0, unknown_erasing=True))
    made.device = made.network.device = GPU  # type: ignore[assignment]
    return made


def panoptic(predictor: Predictor, size: tuple[int, int], objects: int) -> tuple[int, int]:
    """Return the numbers for one image of this size with so many objects, which overlap."""
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    predictor.test_size = (min(size), max(size))
    predictor.limit_detections(objects)
    with count_launches() as launches:
        (raw,) = predictor.predict_raw([image])
        predictor.fuse(raw)
    assert len(raw.instances) == objects
    return numbers(launches)


@pytest.mark.parametrize(("size", "objects"), [((256, 384), 3), ((64, 96), 40)])
def test_a_panoptic_map(predictor, size, objects):
    kernels, waits = panoptic(predictor, (64, 96), 3)
    more_kernels, more_waits = panoptic(predictor, size, objects)
    # connected components take a few more rounds
    assert more_kernels <= kernels + 40
    assert more_waits <= waits + 3


def test_tiles_are_measured_and_predicted_in_batches(predictor):
    image = torch.randint(0, 256, (3, 192, 256), dtype=torch.uint8)
    predictor.limit_detections(3)
    with count_launches() as one:
        predictor.predict_raw([image[:, :64, :64]])
    with count_launches() as tiles:
        predict_tiles(predictor, TensorWindows(image), Tiling(128, 32))
    # a small image, six tiles that are measured one at a time, a batch of them that is measured and one that is
    # predicted, and O of the pairs of each tile
    assert tiles.kernels["convolution"] < 11 * one.kernels["convolution"]


@pytest.mark.parametrize("method", ["heuristic", "shr", "srm", "ocfusion", "soe"])
def test_fusion_of_masks(method):
    found = []
    for count in (4, 30):
        given = scene(3, count)
        with count_launches() as launches:
            fuse(
                given.instances,
                given.sem_seg,
                categories=CATEGORIES,
                method=method,
                sem_confidence=given.confidence,
                ranking=given.ranking,
                occlusion=given.occlusion,
                config={"stuff_area": 1, "soft_scores": method == "soe"},
            )
        found.append(numbers(launches))
    assert found[0] == found[1]


@pytest.mark.parametrize("image", [(64, 96), (61, 90)])
def test_semantic_map(image):
    found = []
    for scale in (1, 4):
        logits = torch.rand(5, 16 * scale, 24 * scale)
        size = (image[0] * scale, image[1] * scale)
        with count_launches() as launches:
            semantic_map(logits, size, (64 * scale, 96 * scale))
        found.append(numbers(launches))
    assert found[0] == found[1]
    assert found[0][1] <= 2


def test_occlusion_of_pairs():
    head = OcclusionHead(OcclusionConfig(["mask", "label"], conv_channels=4, fc_channels=4), 4, 3)
    found = []
    for count in (3, 20):
        instances = replace(scene(3, count).instances, roi_masks=torch.rand(count, 28, 28))
        pairs = torch.combinations(torch.arange(count))
        with count_launches() as launches:
            head.predict(instances, pairs)
        found.append(numbers(launches))
    assert found[0] == found[1]


def test_pairs_of_masks():
    found = []
    for count in (2, 20):  # masks on top of each other
        runs = dense_runs(torch.ones(count, 8, 8, dtype=torch.bool).tril())
        with count_launches() as launches:
            shared_areas(runs)
        found.append(numbers(launches))
    assert found[0] == found[1]


def test_suppression_waits_once_per_class_at_most():
    boxes, scores, labels = torch.rand(30_000, 4).sort().values, torch.rand(30_000), torch.randint(20, (30_000,))
    with count_launches() as launches:
        nms(boxes, scores, labels, 0.5)
    assert launches.waits.total() <= 20 + 2


def test_roi_align_waits_once():
    features = [torch.rand(1, 2, 64 >> n, 64 >> n) for n in range(4)]
    rois = torch.tensor([[0.0, 3, 3, 9, 9], [0, 0, 0, 255, 255]])
    with count_launches() as launches:
        roi_align_levels(features, rois, 7, Sampling())
    assert launches.waits.total() == 1


def test_instances_are_selected_with_one_wait():
    instances = replace(scene(3).instances, roi_masks=torch.rand(8, 28, 28))
    with count_launches() as launches:
        assert len(instances[instances.scores > 0.6]) < len(instances)
    assert launches.waits.total() == 1
