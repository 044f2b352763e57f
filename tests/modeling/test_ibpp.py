"""The exchange between masks and semantics, equation by equation."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from refine.modeling.config import IBPPConfig, MaskHeadConfig, ModelConfig, SemanticHeadConfig
from refine.modeling.ibpp import IBPP, Boxes
from refine.modeling.mask_head import mask_loss
from refine.modeling.semantic_head import SemanticHead
from refine.ops.roi import Sampling, roi_flatten, to_rois

THINGS, CLASSES, CHANNELS = 3, 5, 8


def make_ibpp(iterations=3, shared=False, f_sem=CHANNELS, **ibpp) -> IBPP:
    config = ModelConfig(
        fpn_channels=CHANNELS,
        mask_head=MaskHeadConfig(num_convs=2, channels=8, pool_size=4),
        semantic_head=SemanticHeadConfig(channels=f_sem),
        ibpp=IBPPConfig(iterations=iterations, shared=shared, sem_channels=8, **ibpp),
    )
    module = IBPP(config, THINGS, CLASSES, Sampling())
    for parameter in module.parameters():  # large enough for every path to have an effect
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def make_first(f_sem=CHANNELS) -> SemanticHead:
    """Return H_sem with a non-zero bias; only its 1×1 convolution is used."""
    first = SemanticHead(SemanticHeadConfig(channels=f_sem), CHANNELS, CLASSES).eval()
    for parameter in first.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return first


def make_inputs(module: IBPP, counts=(3, 2), dtype=torch.float32, f_sem=CHANNELS):
    g = torch.Generator().manual_seed(0)
    pyramid = [
        torch.randn(len(counts), CHANNELS, 16 // 2**n, 16 // 2**n, generator=g, dtype=dtype) for n in range(4)
    ]
    features = torch.randn(len(counts), f_sem, 16, 16, generator=g, dtype=dtype)
    logits = torch.randn(len(counts), CLASSES, 16, 16, generator=g, dtype=dtype)
    corners = [torch.rand(n, 2, generator=g) * 30 for n in counts]
    rois = to_rois([torch.cat([c, c + 20], 1) for c in corners]).to(dtype)
    labels = torch.randint(0, THINGS, (sum(counts),), generator=g)
    scores = torch.rand(sum(counts), generator=g, dtype=dtype)
    return module.boxes(pyramid, features, rois, labels, scores), features, logits


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_predict_follows_the_equations(shared, residual):
    module = make_ibpp(iterations=3, shared=shared, residual=residual).eval()
    boxes, features, _ = make_inputs(module)
    first = make_first()
    p_sem, masks = first(features), []
    for t in range(3):
        mask_head = module.mask_heads[0 if shared else t]
        sem_head = module.semantic_heads[0 if shared else t]
        aligned = roi_align(p_sem, boxes.rois, 4, 0.25, 2, aligned=True)  # eq. 3
        masks.append(torch.sigmoid(mask_head(mask_head.from_features(boxes.features), boxes.labels, aligned)[0]))
        painted = boxes.scores * (boxes.scores >= 0.05)
        canvas = roi_flatten(masks[-1], boxes.rois, boxes.labels, painted, (2, THINGS, 16, 16))  # eq. 5
        predicted = sem_head.predictor(sem_head(canvas, sem_head.from_features(features)))  # eq. 6
        p_sem = p_sem + predicted if residual else predicted
    got_masks, got_logits = module.predict(boxes, features, first)
    torch.testing.assert_close(got_masks, torch.stack(masks).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got_logits, p_sem, atol=1e-4, rtol=1e-4)


def make_plain(module: IBPP) -> IBPP:
    """Return a module with the same weights, without residuals."""
    plain = make_ibpp(iterations=module.config.iterations, shared=module.config.shared)
    plain.load_state_dict(module.state_dict())
    return plain


def test_residuals_are_zero_initially():
    config = ModelConfig(
        fpn_channels=CHANNELS,
        mask_head=MaskHeadConfig(num_convs=1, channels=8, pool_size=4),
        semantic_head=SemanticHeadConfig(channels=CHANNELS),
        ibpp=IBPPConfig(sem_channels=8, residual=True),
    )
    module, first = IBPP(config, THINGS, CLASSES, Sampling()), make_first()
    boxes, features, _ = make_inputs(module)
    assert module.predict(boxes, features, first)[1].equal(first(features))


def test_appearance_is_the_sum_of_instance_and_semantic_features():
    module, plain = make_ibpp(iterations=1), make_ibpp(iterations=0)
    boxes, features, _ = make_inputs(module)
    alone, _, _ = make_inputs(plain)
    f_sem = roi_align(features, boxes.rois, 4, 0.25, 2, aligned=True)  # eq. 2
    torch.testing.assert_close(boxes.features, alone.features + f_sem)


@pytest.mark.parametrize("iterations", [0, 2])
def test_semantics_are_added_to_the_masks(iterations):
    module, first = make_ibpp(iterations), make_first()
    boxes, features, _ = make_inputs(module)
    masks, logits = module.predict(boxes, features, first)
    module.semantic_weight = 0.25
    got, same = module.predict(boxes, features, first)
    assert torch.equal(same, logits)
    p = roi_align(logits.softmax(1), boxes.rois, masks.shape[-1], 0.25, 2, aligned=True)
    for n, label in enumerate(boxes.labels.tolist()):
        odds = p[n, label] / (1 - p[n, label]) * (CLASSES - 1)  # against those of chance
        expected = torch.sigmoid(masks[n].logit() + 0.25 * odds.log())
        torch.testing.assert_close(got[n], expected, atol=1e-5, rtol=1e-4)
    nothing, _, _ = make_inputs(module, counts=(0, 0))
    assert module.predict(nothing, features, first)[0].shape == (0, *masks.shape[1:])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("width", [CHANNELS, CHANNELS // 2])
def test_balanced_inputs_by_the_equations(shared, width):
    """f_ins, f_sem and p_sem have separate convolutions; predictions are probabilities × √C."""
    module = make_ibpp(iterations=2, shared=shared, exchange="balanced", f_sem=width).eval()
    boxes, features, _ = make_inputs(module, f_sem=width)
    first, gain = make_first(width), CHANNELS**0.5
    f_ins, _, _ = make_inputs(make_ibpp(iterations=0), f_sem=width)
    f_sem = roi_align(features, boxes.rois, 4, 0.25, 2, aligned=True)
    cue = f_ins.features + f_sem if width == CHANNELS else f_ins.features  # of the occlusion head
    torch.testing.assert_close(boxes.appearance, cue)
    p_sem, masks = first(features), []
    for t in range(2):
        mask_head = module.mask_heads[0 if shared else t]
        sem_head = module.semantic_heads[0 if shared else t]
        x = mask_head.from_features(f_ins.features) + mask_head.from_f_sem(f_sem)
        aligned = roi_align(p_sem, boxes.rois, 4, 0.25, 2, aligned=True)
        masks.append(torch.sigmoid(mask_head(x, boxes.labels, gain * aligned.softmax(1))[0]))
        painted = boxes.scores * (boxes.scores >= 0.05)
        canvas = gain * roi_flatten(masks[-1], boxes.rois, boxes.labels, painted, (2, THINGS, 16, 16))
        p_sem = sem_head.predictor(sem_head(canvas, sem_head.from_features(features)))
    got_masks, got_logits = module.predict(boxes, features, first)
    torch.testing.assert_close(got_masks, torch.stack(masks).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got_logits, p_sem, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_balanced_residuals_initially_equal_no_iterations(shared):
    config = ModelConfig(
        fpn_channels=CHANNELS,
        mask_head=MaskHeadConfig(num_convs=2, channels=8, pool_size=4),
        semantic_head=SemanticHeadConfig(channels=CHANNELS),
        ibpp=IBPPConfig(sem_channels=8, shared=shared, exchange="balanced", residual=True),
    )
    plain = make_ibpp(iterations=0)
    module, first = IBPP(config, THINGS, CLASSES, Sampling()), make_first()
    for head in module.mask_heads:
        left = head.load_state_dict(plain.mask_heads[0].state_dict(), strict=False).missing_keys
        assert left == ["from_semantic.weight", "from_f_sem.weight"]
    boxes, features, _ = make_inputs(module)
    alone, _, _ = make_inputs(plain)
    masks, logits = module.predict(boxes, features, first)
    expected_masks, expected = plain.predict(alone, features, first)
    assert logits.equal(expected)
    torch.testing.assert_close(masks, expected_masks, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_mask_flow_adds_the_features_of_the_previous_head(shared):
    module = make_ibpp(iterations=2, shared=shared, mask_flow=True).eval()
    boxes, features, _ = make_inputs(module)
    first = make_first()
    assert (module.mask_head(1).from_before is None) == (not shared)
    p_sem, before, masks = first(features), None, []
    for t in (1, 2):
        head, sem_head = module.mask_head(t), module.semantic_head(t)
        x = head.from_features(boxes.features)
        x = x + head.from_semantic(roi_align(p_sem, boxes.rois, 4, 0.25, 2, aligned=True))
        x = x if before is None else x + F.conv2d(before, head.from_before.weight)
        before = head.convs(F.relu(head.norm(x)))
        every = head.predictor(F.relu(head.deconv(before)))
        masks.append(torch.sigmoid(every[torch.arange(5), boxes.labels]))
        painted = boxes.scores * (boxes.scores >= 0.05)
        canvas = roi_flatten(masks[-1], boxes.rois, boxes.labels, painted, (2, THINGS, 16, 16))
        p_sem = sem_head.predictor(sem_head(canvas, sem_head.from_features(features)))
    torch.testing.assert_close(module.predict(boxes, features, first)[0], sum(masks) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("exchange", ["paper", "balanced"])
@pytest.mark.parametrize("routes", [[], ["f_sem"], ["p_sem"], ["canvas"], ["f_sem", "canvas"]])
def test_disabled_routes_have_no_effect(routes, exchange):
    module = make_ibpp(iterations=2, routes=routes, exchange=exchange).eval()
    boxes, features, logits = make_inputs(module)
    other = torch.randn_like(logits)
    masks = module.instance_step(1, boxes, logits)
    assert masks.equal(module.instance_step(1, boxes, other)) == ("p_sem" not in routes)
    projected = module.semantic_head(1).from_features(features)
    refined = module.semantic_step(1, boxes, torch.sigmoid(masks), projected)
    emptied = module.semantic_step(1, boxes, torch.zeros_like(masks), projected)
    assert refined.equal(emptied) == ("canvas" not in routes)
    alone, _, _ = make_inputs(make_ibpp(iterations=0))
    assert torch.equal(boxes.appearance, alone.features) == ("f_sem" not in routes)
    every_step = unroll(module, boxes, features, logits, 2)
    assert module.predict(boxes, features, make_first())[0].shape == every_step[0][0].shape


def test_without_iterations_masks_use_only_instance_features():
    module = make_ibpp(iterations=0)
    boxes, features, _ = make_inputs(module)
    first = make_first()
    masks, out = module.predict(boxes, features, first)
    assert out.equal(first(features))
    expected = torch.sigmoid(
        module.mask_heads[0](module.mask_heads[0].from_features(boxes.features), boxes.labels)[0]
    )
    torch.testing.assert_close(masks, expected)
    assert not module.semantic_heads


def unroll(module, boxes, features, logits, iterations):
    """Run the forward pass of training; return masks and semantics of each iteration."""
    masks, semantics = [], [logits]
    for t in range(1, iterations + 1):
        masks.append(module.instance_step(t, boxes, semantics[-1]))
        head = module.semantic_head(t)
        hidden = module.semantic_step(t, boxes, torch.sigmoid(masks[-1]), head.from_features(features))
        semantics.append(module.next_logits(t, hidden, semantics[-1]))
    return masks, semantics


def test_gradients_take_every_route_of_the_loop():
    module = make_ibpp(iterations=2)
    boxes, features, logits = make_inputs(module)
    logits.requires_grad_(True)
    _, semantics = unroll(module, boxes, features, logits, 2)
    semantics[-1].square().sum().backward()
    for head in module.mask_heads:  # the last semantic loss trains all mask heads through ROI-Flatten
        assert head.deconv.weight.grad.abs().sum() > 0
    assert logits.grad.abs().sum() > 0  # and H_sem through ROI-Align of P_sem^(0)
    module.zero_grad()
    masks, _ = unroll(module, boxes, features, logits, 2)
    masks[-1].square().sum().backward()
    # The last mask loss trains the semantic head of the previous iteration, not that of its own.
    assert module.semantic_heads[0].predictor.weight.grad.abs().sum() > 0
    assert module.semantic_heads[1].predictor.weight.grad is None


def test_residual_semantics_learn_as_a_sum():
    module = make_ibpp(iterations=2, residual=True)
    boxes, features, logits = make_inputs(module)
    masks, semantics = unroll(module, boxes, features, logits, 2)
    masks_alone, plain = unroll(make_plain(module), boxes, features, logits, 2)
    assert masks[0].equal(masks_alone[0])
    torch.testing.assert_close(semantics[1], logits + plain[1])
    assert not torch.allclose(masks[1], masks_alone[1])  # masks depend on the sum


def test_detach_cuts_both_routes():
    module = make_ibpp(iterations=2, detach=True)
    boxes, features, logits = make_inputs(module)
    logits.requires_grad_(True)
    masks, semantics = unroll(module, boxes, features, logits, 2)
    (semantics[-1].sum() + masks[-1].sum()).backward()
    assert logits.grad is None
    assert module.mask_heads[0].deconv.weight.grad is None


def test_gradcheck_through_one_iteration():
    module = make_ibpp(iterations=1).double()
    boxes, features, logits = make_inputs(module, counts=(2,), dtype=torch.float64)

    def step(logits, features, appearance):
        b = Boxes(boxes.rois, boxes.labels, boxes.scores, appearance)
        masks, semantics = unroll(module, b, features, logits, 1)
        return semantics[-1][:, :, ::5, ::5], masks[-1][:, ::3, ::3]

    inputs = [x.detach()[..., :].requires_grad_(True) for x in (logits, features, boxes.features)]
    assert torch.autograd.gradcheck(step, inputs, fast_mode=True)


def test_permuted_boxes_permute_masks():
    module = make_ibpp()
    boxes, features, _ = make_inputs(module)
    first = make_first()
    order = torch.tensor([4, 0, 3, 1, 2])
    permuted = Boxes(boxes.rois[order], boxes.labels[order], boxes.scores[order], boxes.features[order])
    masks, semantics = module.predict(boxes, features, first)
    masks2, semantics2 = module.predict(permuted, features, first)
    torch.testing.assert_close(masks2, masks[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(semantics2, semantics, atol=1e-5, rtol=1e-4)


def test_no_box_at_all():
    module = make_ibpp()
    boxes, features, logits = make_inputs(module, counts=(0, 0))
    masks, semantics = module.predict(boxes, features, make_first())
    assert masks.shape == (0, 8, 8)
    assert semantics.shape == logits.shape
    masks, semantics = unroll(module, boxes, features, logits, 2)
    loss = mask_loss(masks[0], torch.zeros(0, 8, 8)) + semantics[-1].sum()
    loss.backward()  # every process of a run needs gradients
    assert loss.isfinite()
