"""Tests that converted networks reproduce the outputs of the originals, for every model in a folder of fixtures.

The folder is `REFINE_DETECTRON2_FIXTURES` (default: `fixtures/detectron2` of the shared data). Each of its
subfolders contains `model_final.pkl`, in the format of detectron2's model zoo, and `reference.pt`: an image, the
configuration and the outputs of every stage.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from refine.checkpoint.convert.convert import Conversion, convert, read_checkpoint, to_model
from refine.checkpoint.convert.settings import read_settings
from refine.fusion import fuse
from refine.modeling.model import PanopticModel
from refine.modeling.output import NetworkOutput
from refine.networks.native import rescale
from refine.ops.masks import paste_masks
from refine.structures import Categories, Category

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("REFINE_SHARED", REPOSITORY.parent / "shared"))
FIXTURES = Path(os.environ.get("REFINE_DETECTRON2_FIXTURES", SHARED / "fixtures" / "detectron2"))
FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/model_final.pkl"))
SETTINGS = ("PIXEL_", "FORMAT", "STRIDE_IN_1X1", "_THRESH", "TOPK", "POOLER", "ANCHOR", "IOUS", "DETECTIONS")
"""Parts of the names of settings that weights do not determine."""
TIE = 3e-4
"""Scores that differ by less are considered equal: the original's vary by as much with the number of threads, and
two detections of `panoptic_fpn_R_50` whose scores differ by 1.5e-4 swap places in double precision."""


@pytest.fixture(
    scope="module",
    params=FOLDERS
    or [pytest.param(None, marks=pytest.mark.skip(f"no fixtures in {FIXTURES}; set REFINE_DETECTRON2_FIXTURES"))],
    ids=lambda folder: folder.name if folder else "none",
)
def case(request, tmp_path_factory) -> "Case":
    return Case(request.param, tmp_path_factory.mktemp("config") / "config.yaml")


class Case:
    """One fixture, its converted network, and that network's outputs for the fixture's image.

    The configuration of the fixture is given, so that unusual settings are converted correctly;
    `test_weights_determine_the_config` tests when it is not needed.
    """

    def __init__(self, folder: Path, config: Path) -> None:
        self.reference = torch.load(folder / "reference.pt", weights_only=True)
        self.expected = self.reference["same_size"]
        self.state = read_checkpoint(folder / "model_final.pkl")
        config.write_text(self.reference["meta"]["cfg_yaml"])
        self.conversion: Conversion = convert(self.state, read_settings(config))
        self.categories = categories(self.conversion.num_things, (self.conversion.num_semantic or 1) - 1)
        self.model: PanopticModel = to_model(self.conversion, self.categories)
        image = self.expected["image_bgr_uint8"].flip(0)
        with torch.no_grad():
            self.batch = self.model.image_batch([image])
            self.pyramid = self.model.pyramid(self.batch)
            self.proposals = self.model.rpn.propose(self.model.rpn(self.pyramid), self.batch.sizes, False)[0]
            self.prediction: NetworkOutput = self.model.predict(self.batch)[0]

    def order(self, view: str) -> Tensor:
        """Return the index of the original detection that corresponds to each predicted one.

        It is 0, 1, 2, … except where scores are equal within TIE. The closest boxes of a class correspond.
        """
        got, expected = self.prediction.instances, self.reference[view]["detections"]
        distance = torch.cdist(got.boxes, expected["pred_boxes"], p=float("inf"))
        distance[got.labels[:, None] != expected["pred_classes"]] = torch.inf
        order = distance.argmin(1)
        assert sorted(order.tolist()) == list(range(len(order))), "not the same detections"
        assert expected["scores"][order].diff().max() < TIE, "another order"
        return order


def categories(num_things: int, num_stuff: int) -> Categories:
    return Categories(
        Category(n + 1, f"class {n}", n < num_things, (n % 256, 0, 0)) for n in range(num_things + num_stuff)
    )


def assert_relative(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare maps relative to the largest value."""
    assert got.shape == expected.shape
    difference = (got - expected).abs().max() / expected.abs().max()
    assert difference < tolerance, f"off by {difference:.2e} of the largest value"


def test_every_key_is_accounted_for(case):
    conversion = case.conversion
    assert set(conversion.names) | set(conversion.left) == set(case.state)
    pixels = {"pixel_mean", "pixel_std"}
    assert set(conversion.names.values()) - pixels <= set(case.model.state_dict())
    assert not conversion.absent
    taken = {name for name, new_name in conversion.names.items() if new_name not in pixels}
    assert sum(case.state[name].size for name in taken) == sum(v.numel() for v in conversion.state.values())


def test_weights_determine_the_config(case):
    """The architecture follows from the weights, and settings are those of the model zoo unless overridden."""
    alone, named = convert(case.state).config, case.conversion.config
    alone.rpn.post_nms_top_n = named.rpn.post_nms_top_n  # used only in training
    if any(part in key for key in case.reference["meta"]["overrides"][::2] for part in SETTINGS):
        backbone = replace(alone.backbone, stride_in_1x1=named.backbone.stride_in_1x1)
        alone, named = (
            (alone.mask_head, alone.semantic_head, backbone),
            (
                named.mask_head,
                named.semantic_head,
                named.backbone,
            ),
        )
    assert alone == named


def test_settings_equal_the_original(case):
    expected, config = yaml.safe_load(case.reference["meta"]["cfg_yaml"]), case.conversion.config
    assert config.channels == expected["INPUT"]["FORMAT"]
    expected = expected["MODEL"]
    assert list(config.pixel_mean) == expected["PIXEL_MEAN"]
    assert list(config.pixel_std) == expected["PIXEL_STD"]
    assert config.backbone.stride_in_1x1 == expected["RESNETS"]["STRIDE_IN_1X1"]
    assert [s + 2 in config.backbone.deform_stages for s in range(4)] == expected["RESNETS"]["DEFORM_ON_PER_STAGE"]
    assert config.roi_sampling == expected["ROI_BOX_HEAD"]["POOLER_SAMPLING_RATIO"]
    assert config.rpn.post_nms_top_n[1] == expected["RPN"]["POST_NMS_TOPK_TEST"]
    assert config.box_head.score_threshold == expected["ROI_HEADS"]["SCORE_THRESH_TEST"]


def test_pyramid(case):
    assert list(case.batch.tensor.shape[-2:]) == case.expected["padded_size"]
    for n, got in enumerate(case.pyramid):
        assert_relative(got[0], case.expected["fpn"][f"p{n + 2}"], 1e-4)


def test_semantic_logits(case):
    expected = case.expected["sem_seg_logits_stride4"]  # half precision: rounded by up to 2^-11 of each value
    rounding = expected.float().abs() * 2.0**-11
    difference = (case.prediction.sem_logits - expected.float()).abs() - rounding
    assert difference.max() / expected.float().abs().max() < 1e-4


def test_proposals(case):
    """Compare as a set, because the order of equal scores differs even in the original."""
    expected = case.expected["proposal_boxes"]
    assert len(case.proposals) == len(expected)
    distance = torch.cdist(case.proposals, expected, p=float("inf"))
    assert distance.min(1).values.max() < 1e-2
    assert distance.min(0).values.max() < 1e-2


@pytest.mark.parametrize("view", ["same_size", "resized"])
def test_detections(case, view):
    got, expected = case.prediction.instances, case.reference[view]["detections"]
    assert len(got) == len(expected["scores"])
    order = case.order(view)
    assert torch.equal(got.labels, expected["pred_classes"][order])
    assert (got.boxes - expected["pred_boxes"][order]).abs().max() < 1e-2
    assert (got.scores - expected["scores"][order]).abs().max() < 1e-3
    error = (got.roi_masks - expected["pred_masks_28"][order]).abs()
    # Some pixels are sensitive to rounding: in double precision one differs by 1.05e-3.
    assert error.flatten(1).mean(1).max() < 1e-3
    assert (error > 1e-3).float().mean() < 1e-4
    assert error.max() < 1e-2


@pytest.mark.parametrize("view", ["same_size", "resized"])
def test_panoptic_map(case, view):
    expected = case.reference[view]
    height, width = expected["output_size"]
    raw = rescale(case.prediction, (height, width), case.model.semantic_classes)
    order = case.order(view)
    assert (raw.instances.boxes - expected["instances"]["pred_boxes"][order]).abs().max() < 1e-2
    pasted = paste_masks(raw.instances.roi_masks, raw.instances.boxes, (height, width))
    packed = np.packbits(pasted.flatten(1).numpy(), axis=1)
    assert (
        np.bitwise_count(packed ^ expected["instances"]["pred_masks_packed"][order].numpy())
    ).sum() <= 1e-3 * pasted.sum()

    result = fuse(
        raw.instances,
        raw.sem_seg,
        categories=case.categories,
        sem_confidence=raw.sem_confidence,
        config=case.conversion.fusion,
    )
    got_segments = {s.id: (s.isthing, s.category_id - 1) for s in result.segments}
    expected_segments = {
        s["id"]: (s["isthing"], s["category_id"] + (0 if s["isthing"] else case.categories.num_things - 1))
        for s in expected["segments_info"]
    }
    assert sorted(got_segments.values()) == sorted(expected_segments.values())
    same = same_pixels(result.segment_ids, got_segments, expected["panoptic_seg"], expected_segments)
    assert same >= 0.999 * height * width


def same_pixels(got: Tensor, got_classes: dict, expected: Tensor, expected_classes: dict) -> int:
    """Count the pixels of segments that correspond one to one and in class, and of void in both."""
    pairs, counts = torch.stack([got.flatten(), expected.flatten()]).unique(dim=1, return_counts=True)
    found = sorted(zip(counts.tolist(), *pairs.tolist(), strict=True), reverse=True)
    total, used_got, used_expected = 0, set(), set()
    for count, a, b in found:
        if a in used_got or b in used_expected or got_classes.get(a) != expected_classes.get(b):
            continue
        total += count
        used_got.add(a)
        used_expected.add(b)
    return total
