"""Losses of the network: their weights, the heads that share one, and the fusion heads."""

import re

import pytest
import torch
from helpers.two_squares import CASCADE, CLASSES, THINGS, scene, tiny

from refine.modeling.config import (
    IBPPConfig,
    LossConfig,
    OcclusionConfig,
    SemanticHeadConfig,
)
from refine.modeling.losses import instance_weight, semantic_targets, semantic_weight
from refine.modeling.model import PanopticModel
from refine.structures import VOID
from refine.training.optim import freeze_except
from refine.training.update import train_mode


@pytest.mark.parametrize("box_head", [tiny().box_head, CASCADE])
def test_shared_heads_learn_as_the_sum_of_equal_separate_ones(box_head):
    def run(shared):
        ibpp = IBPPConfig(3, shared=shared, sem_channels=16)
        model = PanopticModel(tiny(3, box_head=box_head, ibpp=ibpp), THINGS, CLASSES)
        model.load_state_dict({n: state[re.sub(r"(_heads)\.\d", r"\1.0", n)] for n in model.state_dict()})
        torch.manual_seed(1)  # sampled boxes
        losses = model.loss(model.image_batch([image]), [targets])
        sum(losses.values()).backward()
        return losses, {n: p.grad for n, p in model.ibpp.named_parameters()}

    image, targets = scene()
    torch.manual_seed(0)
    first = PanopticModel(
        tiny(3, box_head=box_head, ibpp=IBPPConfig(3, shared=True, sem_channels=16)), THINGS, CLASSES
    )
    state = {n: torch.randn_like(v) * 0.1 if n.startswith("ibpp.") else v for n, v in first.state_dict().items()}
    (one, shared), (each, separate) = run(True), run(False)
    for name, loss in each.items():
        torch.testing.assert_close(one[name], loss)
    for name, gradient in shared.items():
        parts = [separate[re.sub(r"(_heads)\.0", rf"\1.{t}", name)] for t in range(3)]
        torch.testing.assert_close(gradient, sum(parts), atol=1e-5, rtol=1e-3)


def test_merged_things_are_trained_as_one_channel():
    config = tiny(0, semantic_head=SemanticHeadConfig(channels=16, classes="stuff"))
    model = PanopticModel(config, THINGS, CLASSES)
    assert model.semantic_classes.tolist() == [VOID, 2, 3]
    image, targets = scene()
    seen = semantic_targets(model, model.image_batch([image]), [targets])[0]
    assert seen[0, 0] == VOID
    assert seen[20, 20] == 0
    assert seen[60, 10] == 1
    assert seen[60, 90] == 2


HEADS = {"occlusion": OcclusionConfig(conv_channels=8, fc_channels=8, pair_overlap=0.01), "ranking": True}


def test_fusion_heads_are_trained_jointly():
    model = PanopticModel(tiny(1, **HEADS), THINGS, CLASSES)
    image, targets = scene()
    losses = model.loss(model.image_batch([image]), [targets])
    assert {"loss_occlusion", "loss_ranking", "loss_mask_1", "loss_sem_1"} <= set(losses)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    instances = model.eval().predict(model.image_batch([image]))[0].instances
    assert instances.features.shape == (len(instances), 16, 14, 14)


def test_fusion_heads_are_trained_alone():
    model = PanopticModel(tiny(1, **HEADS), THINGS, CLASSES)
    freeze_except(model, ["occlusion.", "ranking."])
    train_mode(model)
    image, targets = scene()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = model.loss(model.image_batch([image]), [targets])
    assert set(losses) == {"loss_occlusion", "loss_ranking"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    sum(losses.values()).backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith(("occlusion.", "ranking.")) for name in changed)


def test_weights_of_the_losses():
    model = PanopticModel(tiny(3), THINGS, CLASSES)
    assert [semantic_weight(model.config, t) for t in range(4)] == [0.2, 0.2, 0.2, 0.5]
    assert instance_weight(model.config, 2, box=False) == pytest.approx(1 / 3)
    assert instance_weight(model.config, 1, box=True) == 1
    cascade = PanopticModel(tiny(3, box_head=CASCADE), THINGS, CLASSES)
    assert [instance_weight(cascade.config, t, box=True) for t in (1, 2, 3)] == [1, 0.5, 0.25]
    detectron2 = PanopticModel(tiny(0, box_head=CASCADE, losses=LossConfig(cascade="gradient")), THINGS, CLASSES)
    assert [instance_weight(detectron2.config, t, box=True) for t in (1, 2, 3)] == [1, 1, 1]
    given = PanopticModel(tiny(3, losses=LossConfig(instance=[1.0, 2.0])), THINGS, CLASSES)
    assert [instance_weight(given.config, t, box=False) for t in (1, 2, 3)] == [1, 2, 2]


@pytest.mark.parametrize(("cascade", "into_pyramid"), [("loss", [1, 0.5, 0.25]), ("gradient", [1 / 3] * 3)])
def test_stages_of_a_cascade_are_weighted_down_once(cascade, into_pyramid):
    """Either their losses are weighted, as in BCC-Net, or their gradients to the FPN, as in detectron2."""
    torch.manual_seed(0)
    model = PanopticModel(tiny(0, box_head=CASCADE, losses=LossConfig(cascade=cascade)), THINGS, CLASSES)
    image, targets = scene()
    batch = model.image_batch([image])
    pyramid = [level.detach().requires_grad_(True) for level in model.pyramid(batch)]
    proposals = model.rpn.propose(model.rpn(pyramid), batch.sizes, training=True)
    samples = model.box_heads.sample(proposals, [targets])
    for t, expected in zip((1, 2, 3), into_pyramid, strict=True):
        weight = instance_weight(model.config, t, box=True)
        losses, _, following = model.box_heads.stage_loss(t - 1, pyramid[:4], samples, [targets])
        model.box_heads.share_gradient = False
        plain, _, _ = model.box_heads.stage_loss(t - 1, pyramid[:4], samples, [targets])
        model.box_heads.share_gradient = cascade == "gradient"
        gradients = torch.autograd.grad(weight * losses[f"loss_cls_{t}"], pyramid[:4], allow_unused=True)
        whole = torch.autograd.grad(plain[f"loss_cls_{t}"], pyramid[:4], allow_unused=True)
        for part, all_of_it in zip(gradients, whole, strict=True):
            if all_of_it is not None:
                torch.testing.assert_close(part, expected * all_of_it)
        samples = following


def test_the_occlusion_head_is_trained_on_detections_and_true_boxes(monkeypatch):
    from refine.modeling import losses as module

    seen = []

    def contested_pairs(instances, targets, *settings):
        seen.append((instances, targets))
        return original(instances, targets, *settings)

    original = module.contested_pairs
    monkeypatch.setattr(module, "contested_pairs", contested_pairs)
    image, targets = scene()
    targets.iscrowd[1] = True
    model = PanopticModel(tiny(occlusion=OcclusionConfig(conv_channels=8, fc_channels=8)), THINGS, CLASSES)
    freeze_except(model, ["occlusion"])
    train_mode(model)
    losses = model.loss(model.image_batch([image]), [targets])
    assert set(losses) == {"loss_occlusion"}
    assert losses["loss_occlusion"].requires_grad
    (detected, _), (true, of_true) = seen
    assert len(detected) <= 10
    assert of_true is targets
    assert torch.equal(true.boxes, targets.boxes[:1])
    assert torch.equal(true.labels, targets.labels[:1])
    assert true.scores.tolist() == [1]
    assert true.roi_masks.shape == (1, 28, 28)
    assert not true.features.requires_grad
