"""Region proposals against detectron2's outputs, torchvision's RPN where they coincide, and slow loops."""

import pytest
import torch
import torch.nn.functional as F
from helpers.detection_cases import FIXTURES, detectron2_case, load_renamed, make_targets, random_boxes
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, clip_boxes_to_image

from refine.errors import RefineError
from refine.modeling.config import RPNConfig
from refine.modeling.rpn import RegionProposals, RPNOutput
from refine.ops.boxes import decode_boxes, encode_boxes

ONE = (1.0, 1.0, 1.0, 1.0)
SIZE = (128, 192)


def pyramid(channels=8, batch=1, size=SIZE, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, -(-size[0] // s), -(-size[1] // s), generator=g) for s in (4, 8, 16, 32, 64)
    ]


def make_rpn(std=0.05, channels=8, **changes) -> RegionProposals:
    """Weights wide enough that logits and deltas differ clearly."""
    rpn = RegionProposals(RPNConfig(**changes), channels)
    for layer in (rpn.conv, rpn.objectness, rpn.deltas):
        torch.nn.init.normal_(layer.weight, std=std)
    return rpn


def torchvision_rpn(rpn: RegionProposals, channels=8, training=False) -> RegionProposalNetwork:
    """The same network there, for square anchors, which rounding leaves as they are."""
    c = rpn.config
    head = RPNHead(channels, 1)
    head.conv[0][0].load_state_dict(rpn.conv.state_dict())
    head.cls_logits.load_state_dict(rpn.objectness.state_dict())
    head.bbox_pred.load_state_dict(rpn.deltas.state_dict())
    anchors = AnchorGenerator(tuple((int(s),) for s in c.anchor_sizes), ((1.0,),) * 5)
    before = {"training": c.pre_nms_top_n[0], "testing": c.pre_nms_top_n[1]}
    after = {"training": c.post_nms_top_n[0], "testing": c.post_nms_top_n[1]}
    network = RegionProposalNetwork(
        anchors, head, c.positive_iou, c.negative_iou, c.samples, c.positive_fraction, before, after, c.nms
    )
    return network.train(training)


def test_anchors_by_hand():
    # P2, size 32, ratio 1/2 (half as high as wide): 32·√2 wide, 32/√2 high; not rounded; the first is
    # centred on 0, its right neighbour on 4, the next row on y = 4.
    output = make_rpn()(pyramid())
    w, h = 32 * 2**0.5 / 2, 32 / 2**0.5 / 2
    anchors = output.anchors[0].view(32, 48, 3, 4)
    torch.testing.assert_close(anchors[0, 0, 0], torch.tensor([-w, -h, w, h]))
    torch.testing.assert_close(anchors[0, 0, 2], torch.tensor([-h, -w, h, w]))
    torch.testing.assert_close(anchors[0, 0, 1], torch.tensor([-16.0, -16, 16, 16]))
    torch.testing.assert_close(anchors[1, 3, 1], torch.tensor([-4.0, -12, 28, 20]))


def test_odd_levels_keep_their_stride():
    # 96 pixels are 3 cells of P5 and 2 of P6: the second is centred on 64, not on 96 // 2.
    output = make_rpn()(pyramid(size=(96, 96)))
    assert [len(a) for a in output.anchors] == [3 * n * n for n in (24, 12, 6, 3, 2)]
    torch.testing.assert_close(output.anchors[4][4], torch.tensor([-192.0, -256, 320, 256]))


def test_outputs_belong_to_their_anchors():
    # The third anchor of the cell in row 5 and column 7 of P3, in the second image.
    rpn = make_rpn()
    x = pyramid(batch=2)
    output = rpn(x)
    hidden = F.relu(rpn.conv(x[1]))
    y, column, a = 5, 7, 2
    place = (y * 24 + column) * 3 + a
    torch.testing.assert_close(output.objectness[1][1, place], rpn.objectness(hidden)[1, a, y, column])
    torch.testing.assert_close(output.deltas[1][1, place], rpn.deltas(hidden)[1, 4 * a : 4 * a + 4, y, column])
    centre = (output.anchors[1][place, :2] + output.anchors[1][place, 2:]) / 2
    torch.testing.assert_close(centre, torch.tensor([column * 8.0, y * 8.0]))


def leave_out_padding(head: RPNHead, sizes) -> None:
    """Let torchvision's head give the lowest objectness to the cells that are centred in the padding."""

    def mask(_, __, output):
        objectness, deltas = [maps.clone() for maps in output[0]], output[1]
        for maps, stride in zip(objectness, (4, 8, 16, 32, 64), strict=True):
            for n, (height, width) in enumerate(sizes):
                maps[n, :, -(-height // stride) :] = -torch.inf
                maps[n, :, :, -(-width // stride) :] = -torch.inf
        return objectness, deltas

    head.register_forward_hook(mask)


@pytest.mark.parametrize("training", [False, True])
def test_proposals_equal_torchvision(training):
    rpn = make_rpn(aspect_ratios=[1.0], pre_nms_top_n=(400, 150), post_nms_top_n=(300, 100))
    x, sizes = pyramid(batch=2), [SIZE, (100, 150)]
    proposals = rpn.propose(rpn(x), sizes, training)
    network = torchvision_rpn(rpn, training=training)
    leave_out_padding(network.head, sizes)
    network.score_thresh = 1e-12  # the cells in the padding have 0
    images = ImageList(torch.zeros(2, 3, *SIZE), sizes)
    targets = [{"boxes": random_boxes(3, size=s)} for s in sizes]
    theirs, _ = network(images, {str(n): v for n, v in enumerate(x)}, targets)
    for a, b in zip(proposals, theirs, strict=True):
        # They sort by the sigmoid of the logit, in which close ones become equal and change places.
        assert a.shape == b.shape
        assert torch.cdist(a, b, p=float("inf")).amin(0).max() < 1e-3
        torch.testing.assert_close(a[:50], b[:50], atol=1e-3, rtol=1e-5)
        assert not a.requires_grad


def test_proposals_equal_slow_reference():
    # Greedy suppression in each level, then the best of all: three aspect ratios, unrounded anchors.
    rpn = make_rpn(pre_nms_top_n=(9, 40), post_nms_top_n=(9, 60), nms=0.5)
    output, size = rpn(pyramid(seed=4)), (110, 170)
    kept = []
    for logits, deltas, anchors in zip(output.objectness, output.deltas, output.anchors, strict=True):
        boxes = clip_boxes_to_image(decode_boxes(deltas[0], anchors, ONE), size)
        level = []
        x, y = (anchors[:, :2] + anchors[:, 2:]).unbind(1)
        inside = (x / 2 < size[1]) & (y / 2 < size[0])
        for n in [n for n in logits[0].argsort(descending=True, stable=True) if inside[n]][:40]:
            box = boxes[n]
            if (box[2:] <= box[:2]).any():
                continue
            if all(box_iou(box[None], other[None]) <= 0.5 for _, other in level):
                level.append((logits[0, n].item(), box))
        kept += level
    kept = sorted(kept, key=lambda x: -x[0])[:60]
    (boxes, logits), *_ = rpn.propose_scored(output, [size], training=False)
    torch.testing.assert_close(boxes, torch.stack([b for _, b in kept]))
    torch.testing.assert_close(logits, torch.tensor([s for s, _ in kept]))


def test_padding_takes_no_places_of_proposals():
    # An image with a large uniform area has cells of equal logits in the padding, more than there are places.
    rpn = make_rpn(pre_nms_top_n=(9, 40), post_nms_top_n=(9, 60))
    x, size = pyramid(seed=5), (100, 130)
    expected = rpn.propose(rpn(x), [size], training=False)[0]
    output = rpn(x)
    for objectness, anchors in zip(output.objectness, output.anchors, strict=True):
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        objectness[0, (centres[:, 0] >= size[1]) | (centres[:, 1] >= size[0])] = 50.0
    torch.testing.assert_close(rpn.propose(output, [size], training=False)[0], expected)
    assert len(expected) > 40


@pytest.mark.parametrize("infinite", [float("inf"), -float("inf"), float("nan")])
def test_empty_and_infinite_proposals_are_dropped(infinite):
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60], [70, 70, 80, 80]])
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0, 0] = -5  # leaves the image at the left
    deltas[0, 2, 0] = infinite
    rpn = make_rpn()
    output = RPNOutput([torch.tensor([[4.0, 3, 2, float("nan")]])], [deltas], [anchors])
    ((boxes, logits),) = rpn.propose_scored(output, [(100, 100)], training=True)
    torch.testing.assert_close(boxes, anchors[1:2])
    assert logits.tolist() == [3.0]
    deltas[..., 0] = -99
    assert rpn.propose(output, [(100, 100)], training=True)[0].shape == (0, 4)


def test_objectness_loss_equals_torchvision():
    # All anchors are drawn, so that chance has no part; theirs is the mean over the drawn ones.
    rpn = make_rpn(aspect_ratios=[1.0], samples=100_000, positive_fraction=1.0)
    x = pyramid(batch=2)
    boxes = [random_boxes(4, size=SIZE, seed=n) for n in range(2)]
    losses = rpn.losses(rpn(x), [make_targets(b.tolist(), size=SIZE) for b in boxes])
    network = torchvision_rpn(rpn, training=True)
    images = ImageList(torch.zeros(2, 3, *SIZE), [SIZE] * 2)
    features = {str(n): v for n, v in enumerate(x)}
    _, theirs = network(images, features, [{"boxes": b} for b in boxes])
    labels, _ = network.assign_targets_to_anchors(
        network.anchor_generator(images, x), [{"boxes": b} for b in boxes]
    )
    drawn = int((torch.cat(labels) >= 0).sum())
    ours = losses["loss_rpn_objectness"] * 100_000 * 2 / drawn
    torch.testing.assert_close(ours, theirs["loss_objectness"])


def test_losses_equal_slow_reference():
    rpn = make_rpn(samples=100_000, positive_fraction=1.0)
    output = rpn(pyramid(seed=2))
    target = make_targets([[10, 10, 50, 60], [100, 30, 190, 120]], size=SIZE)
    losses = rpn.losses(output, [target])
    anchors, logits = torch.cat(output.anchors), torch.cat(output.objectness, 1)[0]
    deltas = torch.cat(output.deltas, 1)[0]
    iou = box_iou(target.boxes, anchors)
    objectness = box = 0.0
    for n in range(len(anchors)):
        best = bool((iou[:, n] == iou.max(1).values).any())
        if iou[:, n].max() >= 0.7 or best:
            objectness = objectness + F.softplus(-logits[n])
            own = target.boxes[iou[:, n].argmax()]
            wanted = encode_boxes(anchors[[n]], own[None], ONE)[0]
            box = box + (deltas[n] - wanted).abs().sum()
        elif iou[:, n].max() < 0.3:
            objectness = objectness + F.softplus(logits[n])
    torch.testing.assert_close(losses["loss_rpn_objectness"], objectness / 100_000, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(losses["loss_rpn_box"], box / 100_000)


def test_pinned_losses():
    rpn = make_rpn()
    x = pyramid(batch=2)
    targets = [make_targets(random_boxes(5, size=SIZE, seed=n).tolist(), size=SIZE) for n in range(2)]
    torch.manual_seed(3)
    losses = {k: round(v.item(), 5) for k, v in rpn.losses(rpn(x), targets).items()}
    assert losses == pytest.approx({"loss_rpn_objectness": 0.68813, "loss_rpn_box": 0.15802}, rel=1e-3), losses


def test_losses_draw_as_many_as_configured():
    # One sample of weight 1 / 8 each: 2 positives and 6 negatives of one image, logits 0 -> log 2 each.
    rpn = make_rpn(samples=8, positive_fraction=0.25)
    torch.nn.init.zeros_(rpn.objectness.weight)
    output = rpn(pyramid())
    output.objectness = [o.detach().requires_grad_() for o in output.objectness]
    losses = rpn.losses(output, [make_targets([[10, 10, 50, 60], [90, 30, 180, 120]], size=SIZE)])
    torch.testing.assert_close(losses["loss_rpn_objectness"], torch.tensor(2.0).log())
    losses["loss_rpn_objectness"].backward()
    gradient = torch.cat([o.grad for o in output.objectness], 1)
    assert (gradient < 0).sum() == 2
    assert (gradient > 0).sum() == 6


def test_crowds_are_ignored():
    rpn = make_rpn(samples=100_000, positive_fraction=1.0)
    output = rpn(pyramid())
    output.objectness = [o.detach().requires_grad_() for o in output.objectness]
    crowd = torch.tensor([0.0, 0.0, 96.0, 128.0])
    target = make_targets([crowd.tolist(), [110, 30, 180, 100]], iscrowd=[True, False], size=SIZE)
    rpn.losses(output, [target])["loss_rpn_objectness"].backward()
    drawn = torch.cat([o.grad for o in output.objectness], 1)[0] != 0
    anchors = torch.cat(output.anchors)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    small = anchors[:, 2] - anchors[:, 0] < 50
    deep = small & (centre > 25).all(1) & (centre[:, 0] < 70) & (centre[:, 1] < 100)
    assert deep.any()
    assert not drawn[deep].any()
    outside = small & (centre[:, 0] > 130) & (centre[:, 1] < 5)
    assert drawn[outside].all()


@pytest.mark.parametrize("target", [make_targets(), make_targets([[0, 0, 50, 50]], iscrowd=[True])])
def test_image_without_instances(target):
    rpn = make_rpn()
    losses = rpn.losses(rpn(pyramid()), [target])
    assert losses["loss_rpn_box"] == 0
    assert losses["loss_rpn_objectness"] > 0
    sum(losses.values()).backward()
    for name, parameter in rpn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


def test_half_precision_network():
    rpn, x = make_rpn(), pyramid()
    target = make_targets([[10, 10, 50, 60]], size=SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        output = rpn(x)
        assert output.objectness[0].dtype == torch.bfloat16
        proposals, losses = rpn.propose(output, [SIZE], True), rpn.losses(output, [target])
    assert proposals[0].dtype == torch.float32
    assert {v.dtype for v in losses.values()} == {torch.float32}
    sum(losses.values()).backward()


def test_wrong_number_of_sizes():
    with pytest.raises(RefineError, match="expected 5 sizes"):
        RegionProposals(RPNConfig(anchor_sizes=[32.0]), 8)


@pytest.mark.parametrize("name", FIXTURES)
def test_equals_detectron2(shared_dir, name):
    weights, reference = detectron2_case(shared_dir, name)
    rpn = RegionProposals(RPNConfig(), 32)
    head = "proposal_generator.rpn_head"
    layers = {"conv": "conv", "objectness": "objectness_logits", "deltas": "anchor_deltas"}
    load_renamed(rpn, weights, {a: f"{head}.{b}" for a, b in layers.items()})
    with torch.no_grad():
        output = rpn([reference["fpn"][f"p{n}"][None] for n in range(2, 7)])
    for n in range(5):
        logits = reference["rpn_objectness"][n].permute(1, 2, 0).flatten()
        deltas = reference["rpn_deltas"][n].permute(1, 2, 0).reshape(-1, 4)
        torch.testing.assert_close(output.objectness[n][0], logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.deltas[n][0], deltas, atol=1e-4, rtol=1e-4)
    ((boxes, logits),) = rpn.propose_scored(output, [tuple(reference["padded_size"])], training=False)
    # Equal scores may change places: each box has its twin within a hundredth of a pixel.
    assert boxes.shape == reference["proposal_boxes"].shape
    distance = torch.cdist(boxes, reference["proposal_boxes"], p=float("inf"))
    assert distance.amin(0).max() < 1e-2
    assert distance.amin(1).max() < 1e-2
    torch.testing.assert_close(logits, reference["proposal_logits"], atol=1e-3, rtol=0)
