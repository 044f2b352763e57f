"""Box heads in training: samples, losses against slow loops, and stages of a cascade."""

import pytest
import torch
from helpers.box_cases import CASCADE, SIZE, K, make_heads, pyramid
from helpers.detection_cases import make_targets, random_boxes
from torchvision.ops import box_iou

from refine.errors import RefineError
from refine.modeling.box_head import BoxHead, BoxHeads, SampledBoxes
from refine.modeling.config import BoxHeadConfig
from refine.ops.boxes import encode_boxes
from refine.ops.roi import Sampling, roi_align_levels, to_rois


def near(target, seed=0, shift=6.0, copies=8):
    """Return proposals around the true boxes, and some at random."""
    g = torch.Generator().manual_seed(seed)
    around = target.boxes.repeat(copies, 1)
    around = around + torch.randn(around.shape, generator=g) * shift
    around[:, 2:] = torch.maximum(around[:, 2:], around[:, :2] + 1)
    return torch.cat([around, random_boxes(30, seed=seed)])


def test_shapes_and_initialisation():
    head = BoxHead(BoxHeadConfig(), 256, 80)
    logits, deltas = head(torch.randn(2, 256, 7, 7))
    assert logits.shape == (2, 81)
    assert deltas.shape == (2, 320)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.regressor.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert BoxHead(BoxHeadConfig(class_agnostic=True), 256, 80).regressor.out_features == 4
    bare = BoxHead(BoxHeadConfig(num_convs=0, num_fcs=2), 16, 3)
    assert [m.in_features for m in bare.fcs if isinstance(m, torch.nn.Linear)] == [16 * 49, 1024]


def test_cascade_needs_one_box_for_all_classes():
    with pytest.raises(RefineError, match="class_agnostic"):
        BoxHeads(BoxHeadConfig(ious=[0.5, 0.6]), 8, K, Sampling())


def test_samples_by_hand():
    # The crowd covers the right half. Proposals: close to the object (IoU 0.81), off it (0.25), in the crowd. The
    # true box of the object is added, that of the crowd is not.
    target = make_targets([[80, 0, 160, 128], [10, 10, 50, 50]], labels=[1, 3], iscrowd=[True, False])
    proposals = torch.tensor([[10, 10, 46, 46], [10, 10, 30, 30], [100, 20, 140, 90]]).float()
    (samples,) = make_heads().sample([proposals], [target])
    order = samples.boxes[:, 2].argsort()
    assert samples.boxes[order].tolist() == [[10, 10, 30, 30], [10, 10, 46, 46], [10, 10, 50, 50]]
    assert samples.labels[order].tolist() == [K, 3, 3]
    assert samples.positives().matched.tolist() == [1, 1]


def test_sample_ratio_and_classes():
    target = make_targets(random_boxes(6, seed=3).tolist(), labels=[0, 1, 2, 3, 4, 0])
    heads = make_heads(samples=64)
    proposals = torch.cat([near(target, copies=60), random_boxes(300, seed=9)])
    (samples,) = heads.sample([proposals], [target])
    iou = box_iou(target.boxes, torch.cat([proposals, target.boxes])).amax(0)
    assert (iou >= 0.5).sum() > 16
    assert len(samples.boxes) == 64
    assert samples.is_positive.sum() == 16
    overlap = box_iou(samples.boxes, target.boxes)
    assert torch.equal(overlap.amax(1) >= 0.5, samples.is_positive)
    positives = samples.positives()
    assert torch.equal(positives.labels, target.labels[positives.matched])
    assert torch.equal(positives.matched, box_iou(positives.boxes, target.boxes).argmax(1))


def losses_slowly(heads, stage, x, samples, target):
    """Compute the losses box by box."""
    pooled = roi_align_levels(x, to_rois([samples.boxes]), 7, Sampling())
    logits, deltas = heads.stages[stage](pooled)
    cls = box = 0.0
    for n, label in enumerate(samples.labels.tolist()):
        cls = cls - logits[n].log_softmax(0)[label]
        if label < K:
            own = deltas[n] if heads.config.class_agnostic else deltas[n, 4 * label : 4 * label + 4]
            truth = target.boxes[samples.matched[n]][None]
            wanted = encode_boxes(samples.boxes[[n]], truth, heads.weights(stage))[0]
            box = box + (own - wanted).abs().sum()
    return cls / len(samples.labels), box / len(samples.labels)


@pytest.mark.parametrize("changes", [{}, {"class_agnostic": True}])
def test_losses_equal_slow_reference(changes):
    heads, x = make_heads(**changes), pyramid()
    target = make_targets(random_boxes(3, seed=1).tolist(), labels=[4, 0, 2])
    samples = heads.sample([near(target)], [target])
    assert samples[0].is_positive.any()
    losses, probabilities, following = heads.stage_loss(0, x, samples, [target])
    cls, box = losses_slowly(heads, 0, x, samples[0], target)
    torch.testing.assert_close(losses["loss_cls_1"], cls)
    torch.testing.assert_close(losses["loss_box_1"], box)
    assert following[0] is samples[0]
    assert probabilities[0].shape == (len(samples[0].boxes), K + 1)
    torch.testing.assert_close(probabilities[0].sum(1), torch.ones(len(samples[0].boxes)))
    assert not probabilities[0].requires_grad


def test_losses_of_two_images_are_their_joint_mean():
    heads, x = make_heads(), pyramid(batch=2)
    targets = [make_targets(random_boxes(3, seed=n).tolist(), labels=[4, 0, 2]) for n in range(2)]
    samples = heads.sample([near(t, copies=3 + n) for n, t in enumerate(targets)], targets)
    joint, _, _ = heads.stage_loss(0, x, samples, targets)
    singles = [heads.stage_loss(0, [v[[n]] for v in x], [samples[n]], [targets[n]])[0] for n in range(2)]
    counts = [len(s.boxes) for s in samples]
    for key in joint:
        mean = sum(c * s[key] for c, s in zip(counts, singles, strict=True)) / sum(counts)
        torch.testing.assert_close(joint[key], mean)


@pytest.mark.parametrize("changes", [{}, CASCADE])
def test_pinned_losses(changes):
    heads, x = make_heads(std=0.05, **changes), pyramid(batch=2)
    targets = [make_targets(random_boxes(3, seed=n).tolist(), labels=[4, 0, 2]) for n in range(2)]
    torch.manual_seed(3)
    samples, found = heads.sample([near(t) for t in targets], targets), {}
    for stage in range(len(heads.stages)):
        losses, _, samples = heads.stage_loss(stage, x, samples, targets)
        found |= {k: round(v.item(), 4) for k, v in losses.items()}
    single = {"loss_cls_1": 1.8375, "loss_box_1": 0.934}
    cascade = {"loss_cls_1": 1.8134, "loss_box_1": 0.9168, "loss_cls_2": 1.8303}
    cascade |= {"loss_box_2": 0.9155, "loss_cls_3": 1.8075, "loss_box_3": 0.8204}
    assert found == pytest.approx(cascade if changes else single, rel=1e-3), found


def test_cascade_relabels_refined_boxes():
    # An object of 40 × 40 and boxes of 40 × 40·IoU with IoU 0.55, 0.65, 0.75. A zero regressor does not move them;
    # the stages require 0.5, 0.6 and 0.7.
    heads, x = make_heads(**CASCADE), pyramid()
    for stage in heads.stages:
        torch.nn.init.zeros_(stage.regressor.weight)
    target = make_targets([[20, 20, 60, 60]], labels=[2])
    boxes = torch.tensor([[20, 20, 60, 42], [20, 20, 60, 46], [20, 20, 60, 50]]).float()
    samples = [SampledBoxes(boxes, torch.full((3,), 2), torch.zeros(3, dtype=torch.int64), K)]
    seen = []
    for stage in range(3):
        _, _, samples = heads.stage_loss(stage, x, samples, [target])
        torch.testing.assert_close(samples[0].boxes, boxes)
        seen.append(samples[0].labels.tolist())
    assert seen == [[K, 2, 2], [K, K, 2], [K, K, 2]]  # after the last stage nothing is relabelled


def test_cascade_moves_clips_and_drops_boxes():
    # dx = 10 / weight 10: one box width to the right. The first moves onto the object, the second out of the image
    # (160 wide), the third half out of it.
    heads, x = make_heads(**CASCADE), pyramid()
    torch.nn.init.zeros_(heads.stages[0].regressor.weight)
    heads.stages[0].regressor.bias.data = torch.tensor([10.0, 0, 0, 0])
    target = make_targets([[60, 20, 100, 60]], labels=[2])
    boxes = torch.tensor([[20, 20, 60, 60], [130, 0, 160, 30], [100, 70, 140, 90]]).float()
    samples = [SampledBoxes(boxes, torch.full((3,), K), torch.zeros(3, dtype=torch.int64), K)]
    _, _, (following,) = heads.stage_loss(0, x, samples, [target])
    torch.testing.assert_close(following.boxes, torch.tensor([[60.0, 20, 100, 60], [140, 70, 160, 90]]))
    assert following.labels.tolist() == [2, K]
    assert not following.boxes.requires_grad


def test_cascade_drops_background_in_crowds():
    heads, x = make_heads(**CASCADE), pyramid()
    torch.nn.init.zeros_(heads.stages[0].regressor.weight)
    target = make_targets([[0, 0, 80, 128], [20, 20, 60, 60]], labels=[1, 2], iscrowd=[True, False])
    boxes = torch.tensor([[20, 20, 60, 42], [20, 20, 60, 50], [100, 70, 140, 90]]).float()  # IoU .55, .75, 0
    samples = [SampledBoxes(boxes, torch.tensor([2, 2, K]), torch.tensor([1, 1, 0]), K)]
    _, _, (following,) = heads.stage_loss(0, x, samples, [target])
    torch.testing.assert_close(following.boxes, boxes[1:])
    assert following.labels.tolist() == [2, K]


def test_cascade_scales_only_the_gradients_of_the_fpn():
    single, cascade = make_heads(class_agnostic=True), make_heads(**CASCADE)
    cascade.stages[0].load_state_dict(single.stages[0].state_dict())
    cascade.share_gradient = True
    target = make_targets(random_boxes(3, seed=1).tolist(), labels=[4, 0, 2])
    samples = single.sample([near(target)], [target])
    gradients, losses = [], []
    for heads in (single, cascade):
        x = [v.requires_grad_() for v in pyramid()]
        loss, _, _ = heads.stage_loss(0, x, samples, [target])
        losses.append(sum(loss.values()))
        losses[-1].backward()
        gradients.append((x[0].grad, heads.stages[0].classifier.weight.grad))
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(gradients[1][0] * 3, gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1])


@pytest.mark.parametrize("changes", [{}, CASCADE])
@pytest.mark.parametrize("proposals", [0, 4])
@pytest.mark.parametrize("crowd", [False, True])
def test_nothing_to_find(changes, proposals, crowd):
    heads, x = make_heads(**changes), [v.requires_grad_() for v in pyramid()]
    target = make_targets([[0, 0, 160, 128]], iscrowd=[True]) if crowd else make_targets()
    samples = heads.sample([random_boxes(proposals)], [target])
    total = 0.0
    for stage in range(len(heads.stages)):
        losses, probabilities, samples = heads.stage_loss(stage, x, samples, [target])
        assert losses[f"loss_box_{stage + 1}"] == 0
        assert len(samples[0].positives().boxes) == 0
        assert probabilities[0].shape[1] == K + 1
        total = total + sum(losses.values())
    total.backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


def test_half_precision_network():
    heads, x = make_heads(**CASCADE), pyramid()
    target = make_targets(random_boxes(3, seed=1).tolist(), labels=[4, 0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        samples = heads.sample([near(target)], [target])
        losses, probabilities, following = heads.stage_loss(0, x, samples, [target])
        (found,), _ = heads.predict(x, [near(target)], [SIZE])
    kinds = [*losses.values(), probabilities[0], following[0].boxes, found.boxes, found.scores]
    assert {v.dtype for v in kinds} == {torch.float32}
