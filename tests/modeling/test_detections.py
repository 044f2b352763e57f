"""Detections of box heads, against detectron2's outputs and torchvision's post-processing."""

import pytest
import torch
from helpers.box_cases import CASCADE, SIZE, K, make_heads, pyramid
from helpers.detection_cases import FIXTURES, detectron2_case, load_renamed, random_boxes
from torchvision.models.detection.roi_heads import RoIHeads

from refine.export.boxes import _detections, clip
from refine.modeling.box_head import BoxHeads
from refine.modeling.config import BoxHeadConfig
from refine.ops.roi import Sampling, roi_align_levels, to_rois


@pytest.mark.parametrize("changes", [{}, CASCADE])
def test_no_proposals_and_no_detections_at_test(changes):
    heads, x = make_heads(**changes), pyramid(batch=2)
    (first, second), finite = heads.predict(x, [torch.zeros(0, 4), random_boxes(5)], [SIZE, SIZE])
    assert finite.tolist() == [True, True]
    assert len(first) == 0
    assert first.image_size == SIZE
    assert len(second) > 0
    heads.config.score_threshold = 1.0
    assert [len(d) for d in heads.predict(x, [random_boxes(5)] * 2, [SIZE] * 2)[0]] == [0, 0]


def test_detections_equal_torchvision():
    heads, x = make_heads(max_detections=30), pyramid(batch=2)
    proposals, sizes = [random_boxes(80, seed=1), random_boxes(50, (100, 120), seed=2)], [SIZE, (100, 120)]
    with torch.no_grad():
        logits, deltas = heads.stages[0](roi_align_levels(x, to_rois(proposals), 7, Sampling()))
    c = heads.config
    theirs = RoIHeads(None, None, None, 0.5, 0.5, 1, 0.5, (10.0, 10.0, 5.0, 5.0), c.score_threshold, c.nms, 30)
    # In torchvision background is class 0, whose box is never used.
    logits = torch.cat([logits[:, -1:], logits[:, :-1]], 1)
    deltas = torch.cat([torch.zeros(len(deltas), 4), deltas], 1)
    expected = theirs.postprocess_detections(logits, deltas, proposals, sizes)
    found, _ = heads.predict(x, proposals, sizes)
    for n, (boxes, scores, labels) in enumerate(zip(*expected, strict=True)):
        assert 0 < len(found[n]) <= 30
        torch.testing.assert_close(found[n].boxes, boxes, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(found[n].scores, scores)
        assert torch.equal(found[n].labels, labels - 1)
        assert found[n].image_size == sizes[n]


@pytest.mark.parametrize("changes", [{}, CASCADE])
def test_a_minimum_score_returns_the_first_of_all_detections(changes):
    heads, x = make_heads(max_detections=30, **changes), pyramid(batch=2)
    inputs = x, [random_boxes(80, seed=1), random_boxes(50, seed=2)], [SIZE, SIZE]
    every, _ = heads.predict(*inputs)
    least = float(every[0].scores[9])
    best, _ = heads.predict(*inputs, min_score=least)
    assert len(best[0]) == 10
    for found, expected in zip(best, every, strict=True):
        kept = expected.scores >= least
        for field in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(found, field), getattr(expected, field)[kept])


@pytest.mark.parametrize("changes", [{}, CASCADE])
def test_images_of_a_batch_do_not_mix(changes):
    heads, x = make_heads(**changes), pyramid(batch=2)
    proposals, sizes = [random_boxes(30, seed=1), random_boxes(20, seed=2)], [SIZE, (100, 120)]
    together, _ = heads.predict(x, proposals, sizes)
    for n in range(2):
        (alone,), _ = heads.predict([v[[n]] for v in x], [proposals[n]], [sizes[n]])
        torch.testing.assert_close(together[n].boxes, alone.boxes, atol=1e-4, rtol=1e-4)
        assert torch.equal(together[n].labels, alone.labels)
        assert (together[n].scores.diff() <= 0).all()
        assert (together[n].boxes <= torch.tensor([sizes[n][1], sizes[n][0]] * 2)).all()


def test_cascade_averages_scores_on_its_last_boxes():
    # Each stage predicts the same for every box; scores are averaged. Each stage moves boxes by 8 to the right
    # (dx = 8 / 40 wide, times 10, 20 and 30).
    heads, x = make_heads(**CASCADE), pyramid()
    biases = [torch.tensor([2.0, 0, 0, 0, 0, 1]), torch.tensor([0.0, 3, 0, 0, 0, 0]), torch.zeros(K + 1)]
    for n, stage in enumerate(heads.stages):
        for layer in (stage.classifier, stage.regressor):
            torch.nn.init.zeros_(layer.weight)
        stage.classifier.bias.data = biases[n]
        stage.regressor.bias.data = torch.tensor([0.2 * 10 * (n + 1), 0, 0, 0])
    (found,), _ = heads.predict(x, [torch.tensor([[10.0, 10, 50, 50]])], [SIZE])
    mean = torch.stack([b.softmax(0) for b in biases]).mean(0)[:K]
    order = mean.argsort(descending=True, stable=True)  # equal classes in their order
    assert torch.equal(found.labels, order)
    torch.testing.assert_close(found.scores, mean[order])
    torch.testing.assert_close(found.boxes, torch.tensor([[34.0, 10, 74, 50]]).expand(K, 4))


def test_empty_detections_are_dropped():
    heads = make_heads()
    boxes = torch.tensor([[0.0, 0, 10, 10], [150, 0, 190, 9], [170, 0, 190, 10]]).repeat(1, K)
    found = heads._detect(boxes, torch.full((3, K), 0.1), SIZE)
    assert found.boxes.unique(dim=0).tolist() == [[0, 0, 10, 10], [150, 0, 160, 9]]


def test_empty_detections_take_no_places():
    boxes = torch.tensor([[170.0, 0, 190, 10], [0, 0, 10, 10], [170, 20, 190, 30], [20, 20, 30, 30]])
    scores = torch.zeros(4, K)
    scores[:, 0] = torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = make_heads(max_detections=2)._detect(boxes.repeat(1, K), scores, SIZE)
    assert found.boxes.tolist() == [[0, 0, 10, 10], [20, 20, 30, 30]]
    exported = _detections(clip(boxes, torch.tensor(SIZE))[:, None].expand(-1, K, -1), scores, 0.05, 0.5, 2)
    assert torch.equal(exported.boxes[:-1], found.boxes)  # the last one is artificial


def test_infinite_boxes_are_dropped():
    heads = make_heads()
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, float("inf"), 10], [20, 20, 30, 30]]).repeat(1, K)
    scores = torch.full((3, K), 0.1)
    scores[2, 1] = float("nan")
    found = heads._detect(boxes, scores, SIZE)
    assert found.boxes.unique(dim=0).tolist() == [[0, 0, 10, 10]]


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("layer", ["classifier", "regressor"])
def test_values_that_are_not_finite_are_reported_per_image(stage, layer):
    heads, x = make_heads(**CASCADE), pyramid()
    x = [torch.cat([v, v]) for v in x]
    module = heads.stages[stage].get_submodule(layer)
    second = torch.arange(10) >= 5  # boxes of the second image

    def spoil(module, inputs, output):
        output = output.clone()
        output[second, -1] = torch.inf  # dh of a regressor, which decoding clamps
        return output

    module.register_forward_hook(spoil)
    found, finite = heads.predict(x, [random_boxes(5)] * 2, [SIZE, SIZE])
    assert finite.tolist() == [True, False]
    assert all(d.boxes.isfinite().all() and d.scores.isfinite().all() for d in found)


@pytest.mark.parametrize("name", FIXTURES)
def test_equals_detectron2(shared_dir, name):
    weights, reference = detectron2_case(shared_dir, name)
    changes = CASCADE if "cascade" in name else {}
    heads = BoxHeads(BoxHeadConfig(num_convs=0, num_fcs=2, fc_channels=64, **changes), 32, 80, Sampling(0))
    names = {}
    for n in range(len(heads.stages)):
        part = f".{n}" if changes else ""
        names |= {
            f"stages.{n}.fcs.0": f"roi_heads.box_head{part}.fc1",
            f"stages.{n}.fcs.2": f"roi_heads.box_head{part}.fc2",
            f"stages.{n}.classifier": f"roi_heads.box_predictor{part}.cls_score",
            f"stages.{n}.regressor": f"roi_heads.box_predictor{part}.bbox_pred",
        }
    load_renamed(heads, weights, names)
    x = [reference["fpn"][f"p{n}"][None] for n in range(2, 6)]
    (found,), _ = heads.predict(x, [reference["proposal_boxes"]], [tuple(reference["padded_size"])])
    expected = reference["detections"]
    assert torch.equal(found.labels, expected["pred_classes"])
    torch.testing.assert_close(found.boxes, expected["pred_boxes"], atol=1e-2, rtol=0)
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-3, rtol=0)
