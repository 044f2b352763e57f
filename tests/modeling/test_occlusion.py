"""Fusion head of pairwise occlusion."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.contested import BACK, CHANNELS, FRONT, SIZE, THINGS, make_instances, make_targets

from refine.errors import RefineError
from refine.modeling.config import OcclusionConfig
from refine.modeling.occlusion import OcclusionHead, contested_pairs, detection_pairs, occlusion_loss
from refine.structures import VOID, Instances, Targets

SMALL = OcclusionConfig(conv_channels=8, fc_channels=16)


def test_owner_of_the_shared_pixels_is_in_front():
    targets = make_targets([BACK, FRONT], [0, 1])
    pairs = contested_pairs(make_instances([BACK, FRONT], [0, 1]), targets, 0.2)
    assert pairs.tolist() == [[1, 0]]
    swapped = contested_pairs(make_instances([FRONT, BACK], [1, 0]), targets, 0.2)
    assert swapped.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("boxes", "labels", "share", "why"),
    [
        ([BACK, FRONT], [0, 1], 0.3, "144 of 576 pixels are a quarter"),
        ([BACK, FRONT], [1, 0], 0.2, "detections of another class stand for nothing"),
        ([BACK, BACK], [0, 0], 0.2, "both stand for the same object"),
        ([BACK, [26, 26, 36, 36]], [0, 1], 0.2, "they do not touch"),
        ([BACK, [0, 0, 40, 40]], [0, 1], 0.2, "the second matches no object"),
    ],
)
def test_undetermined_pairs_are_excluded(boxes, labels, share, why):
    assert len(contested_pairs(make_instances(boxes, labels), make_targets([BACK, FRONT], [0, 1]), share)) == 0, why


def test_contested_pixels_of_a_third_object_or_void_decide_nothing():
    third = make_targets([BACK, FRONT, [12, 12, 24, 24]], [0, 1, 2])
    instances = make_instances([BACK, FRONT], [0, 1])
    assert len(contested_pairs(instances, third, 0.2)) == 0
    # Void is not counted: of 12 × 12 shared pixels two rows are labelled, which belong to the front instance.
    targets = make_targets([BACK, FRONT], [0, 1])
    targets.sem_seg[14:24, 12:24] = VOID
    targets.owner[14:24, 12:24] = -1
    assert contested_pairs(instances, targets, 0.2).tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixels_are_counted_exactly_under_autocast(dtype):
    # Full-size images: fp16 ends at 65504, bf16 has eight bits of precision; 100 of 400 columns are shared, just ρ.
    size = (400, 800)
    masks, front = torch.zeros(2, *size, dtype=torch.bool), torch.zeros(size, dtype=torch.int32)
    masks[0, :, :400], masks[1, :, 300:701] = True, True
    front[:, :400], front[:, 300:701] = 1, 2
    targets = Targets.from_panoptic(front, torch.tensor([THINGS, 0, 0]), torch.zeros(3, dtype=torch.bool), THINGS)
    boxes = torch.tensor([[0.0, 0, 400, 400], [300, 0, 701, 400]])
    instances = Instances(size, boxes, torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.ones(2, 28, 28))
    with torch.autocast("cpu", dtype):
        assert detection_pairs(masks.flatten(1), instances.labels, targets, 0.2494)[0].tolist() == [[1, 0]]
        assert contested_pairs(instances, targets, 0.2494).tolist() == [[1, 0]]
        assert contested_pairs(instances, targets, 0.2501).tolist() == []


def test_crowds_are_not_matched():
    targets = make_targets([BACK, FRONT], [0, 1], [True, False])
    assert len(contested_pairs(make_instances([BACK, FRONT], [0, 1]), targets, 0.2)) == 0


def test_the_number_of_pairs_is_limited():
    stripes = [[0, y, 40, y + 8] for y in range(0, 40, 5)]
    targets = make_targets(stripes, [0] * 8)
    instances = make_instances([[0, y, 40, y + 7] for y in range(0, 40, 5)], [0] * 8)
    every = contested_pairs(instances, targets, 0.2)
    assert every.tolist() == [[k + 1, k] for k in range(7)]
    some = contested_pairs(instances, targets, 0.2, limit=3)
    assert len(some) == 3
    assert {tuple(p) for p in some.tolist()} <= {tuple(p) for p in every.tolist()}


def expected_false_pairs(masks, labels, targets, share):
    """Pairs of a true and a false detection, mask by mask and pair by pair."""
    match, iou = [-1] * len(masks), [0.0] * len(masks)
    for i, mask in enumerate(masks):
        for m, shown in enumerate(targets.masks):
            value = float((mask & shown).sum() / (mask | shown).sum())
            if labels[i] == targets.labels[m] and not targets.iscrowd[m] and value >= 0.5 and value > iou[i]:
                match[i], iou[i] = m, value
    pairs = set()
    for i in range(len(masks)):
        rivals = [k for k in range(len(masks)) if match[k] == match[i]]
        if match[i] < 0 or i != max(rivals, key=lambda k: (iou[k], -k)):
            continue
        for j in range(len(masks)):
            ignored = targets.sem_seg == VOID
            for m in range(len(targets)):
                if targets.iscrowd[m] and targets.labels[m] == labels[j]:
                    ignored = ignored | targets.masks[m]
            false = match[j] < 0 and float((masks[j] & ignored).sum()) <= 0.5 * float(masks[j].sum())
            shared = float((masks[i] & masks[j]).sum())
            close = shared >= share * float(masks[i].sum()) or shared >= share * float(masks[j].sum())
            if j != i and close and shared and (false or match[j] == match[i]):
                pairs.add((i, j))
    return pairs


@pytest.mark.parametrize("seed", range(20))
def test_pairs_of_true_and_false_detections_against_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)

    def boxes(n):
        corner = torch.randint(0, 24, (n, 2), generator=generator)
        return torch.cat([corner, corner + torch.randint(6, 17, (n, 2), generator=generator)], 1)

    painted, labels = boxes(5), torch.randint(0, 2, (5,), generator=generator).tolist()
    targets = make_targets(painted.tolist(), labels, [False, False, True, False, False])
    void = torch.rand(SIZE, generator=generator) < 0.3
    void[:, :12] |= torch.rand(SIZE, generator=generator)[:, :12] < 0.5
    targets.sem_seg[void], targets.owner[void] = VOID, -1
    shifted = painted.repeat(3, 1) + torch.randint(-2, 3, (15, 4), generator=generator)
    found = torch.cat([shifted.clamp(0, 39), boxes(5), painted[:1], painted[:1]])
    masks = torch.zeros(len(found), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, found.tolist(), strict=True):
        mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
    classes = torch.tensor([*labels * 3, *[0] * 5, labels[0], labels[0]])
    _, pairs = detection_pairs(masks.flatten(1), classes, targets, 0.2)
    expected = expected_false_pairs(masks, classes.tolist(), targets, 0.2)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(expected) > 3


def test_false_detections_are_training_pairs_on_request():
    targets = make_targets([BACK, FRONT], [0, 1])
    instances = make_instances([BACK, FRONT, [0, 0, 40, 40], [0, 0, 24, 20]], [0, 1, 2, 0])
    true = contested_pairs(instances, targets, 0.2).tolist()
    assert true == [[1, 0], [1, 3]]
    both = contested_pairs(instances, targets, 0.2, false_pairs=True).tolist()
    assert both == [*true, [0, 2], [0, 3], [1, 2]]  # 2 is false, 3 a duplicate of 0


def test_head_is_the_network_of_the_specification():
    """Concatenation, four convolutions, one-hots and three layers, without the head's shortcuts."""
    head = OcclusionHead(SMALL, CHANNELS, THINGS)
    instances = make_instances([BACK, FRONT, BACK], [0, 1, 2])
    instances.roi_masks = torch.rand(3, 28, 28)
    pairs = torch.tensor([[0, 1], [2, 0]])
    maps = torch.cat([instances.features, F.max_pool2d(instances.roi_masks, 2)[:, None]], 1)
    x = torch.cat([maps[pairs[:, 0]], maps[pairs[:, 1]]], 1)
    weight = torch.cat([head.of_front.weight, head.of_back.weight], 1)
    x = F.relu(F.conv2d(x, weight, head.of_front.bias, padding=1))
    for conv in head.convs:
        x = F.relu(conv(x))
    assert x.shape == (2, 8, 7, 7)
    hot = torch.eye(THINGS)[instances.labels]
    x = torch.cat([x.flatten(1), hot[pairs[:, 0]], hot[pairs[:, 1]]], 1)
    expected = head.predictor(F.relu(head.fc2(F.relu(head.fc1(x)))))[:, 0]
    torch.testing.assert_close(head(instances, pairs), expected)
    occlusion = head.predict(instances, pairs)
    torch.testing.assert_close(occlusion[[0, 2], [1, 0]], expected.sigmoid())
    torch.testing.assert_close(occlusion[[1, 0], [0, 2]], head(instances, pairs.flip(1)).sigmoid())
    assert occlusion[1, 2] == occlusion[2, 1] == 0.5


def test_number_of_weights_at_full_size():
    """About 36.4 million weights for 80 classes and 256 features."""
    with torch.device("meta"):
        head = OcclusionHead(OcclusionConfig(), 256, 80)
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(36.4e6, rel=0.01)


@pytest.mark.parametrize(
    ("cues", "missing"), [(["mask"], "features"), (["mask", "label"], "features"), (["feature"], "roi_masks")]
)
def test_a_head_needs_only_its_cues(cues, missing):
    head = OcclusionHead(replace(SMALL, cues=cues), CHANNELS, THINGS)
    instances = replace(make_instances([BACK, FRONT], [0, 1]), **{missing: None})
    assert head(instances, torch.tensor([[0, 1]])).isfinite().all()
    needed = {"features", "roi_masks"} - {missing}
    with pytest.raises(RefineError, match=f"instances.{needed.pop()} is missing"):
        head(replace(instances, features=None, roi_masks=None), torch.tensor([[0, 1]]))


def test_no_pair_needs_no_mask():
    nothing = Instances(SIZE, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    pairs = torch.zeros(0, 2, dtype=torch.int64)
    assert OcclusionHead(SMALL, CHANNELS, THINGS).predict(nothing, pairs).shape == (0, 0)


def test_labels_alone_are_rejected():
    with pytest.raises(RefineError, match="add 'mask', 'feature' or both"):
        OcclusionHead(replace(SMALL, cues=["label"]), CHANNELS, THINGS)


def test_head_learns_which_class_lies_in_front():
    torch.manual_seed(0)
    head = OcclusionHead(SMALL, CHANNELS, THINGS)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for step in range(120):
        instances = make_instances([BACK, FRONT], [0, 1], seed=step)
        loss = occlusion_loss(head, [instances], [torch.tensor([[1, 0]])])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    occlusion = head.predict(make_instances([BACK, FRONT], [0, 1], seed=1000), torch.tensor([[0, 1]]))
    assert occlusion[1, 0] > 0.8
    assert occlusion[0, 1] < 0.2


def test_loss_by_hand_and_without_pairs():
    head = OcclusionHead(SMALL, CHANNELS, THINGS)
    instances = [make_instances([BACK, FRONT], [0, 1]), make_instances([], [])]
    pairs = [torch.tensor([[1, 0]]), torch.zeros(0, 2, dtype=torch.int64)]
    logits = head(instances[0], torch.tensor([[1, 0], [0, 1]]))
    expected = -(F.logsigmoid(logits[0]) + F.logsigmoid(-logits[1])) / 2
    torch.testing.assert_close(occlusion_loss(head, instances, pairs), expected)
    nothing = occlusion_loss(head, instances[1:], pairs[1:])
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is not None for p in head.parameters())
