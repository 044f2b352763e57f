"""The whole network on tiny images."""

from dataclasses import replace

import pytest
import torch
from helpers.two_squares import CASCADE, CLASSES, THINGS, scene, tiny

from refine.errors import RefineError
from refine.modeling.config import (
    IBPPConfig,
    SemanticHeadConfig,
)
from refine.modeling.model import PanopticModel
from refine.structures import Targets

BALANCED = IBPPConfig(2, exchange="balanced", residual=True, sem_channels=16)


@pytest.mark.parametrize(
    ("config", "masks", "semantics"),
    [
        (tiny(0), 1, 1),
        (tiny(1), 1, 2),
        (tiny(3), 3, 4),
        (tiny(3, ibpp=IBPPConfig(3, shared=True, sem_channels=16)), 3, 4),
        (tiny(3, ibpp=IBPPConfig(3, mask_flow=True, sem_channels=16)), 3, 4),
        (tiny(2, ibpp=BALANCED, semantic_head=SemanticHeadConfig(channels=8)), 2, 3),
        (tiny(2, box_head=CASCADE), 2, 3),
        (tiny(4, box_head=CASCADE), 4, 5),
        (tiny(0, semantic_head=SemanticHeadConfig(channels=16, classes="stuff")), 1, 1),
    ],
)
def test_training_reaches_every_parameter_and_prediction_fits(config, masks, semantics):
    model = PanopticModel(config, THINGS, CLASSES)
    image, targets = scene()
    losses = model.loss(model.image_batch([image, image]), [targets, targets])
    assert sum(key.startswith("loss_mask_") for key in losses) == masks
    assert sum(key.startswith("loss_sem_") for key in losses) == semantics
    assert sum(key.startswith("loss_cls_") for key in losses) == len(config.box_head.ious)
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    sum(losses.values()).backward()
    gradients = {n: (p, p.grad) for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, (_, gradient) in gradients.items() if gradient is None]
    # Several processes exchange gradients in the layout of the parameters, and warn of other strides.
    assert not [n for n, (parameter, gradient) in gradients.items() if gradient.stride() != parameter.stride()]
    prediction = model.eval().predict(model.image_batch([image]))[0]
    assert prediction.image_size == (64, 96)
    assert prediction.sem_logits.shape == (len(model.semantic_classes), 16, 24)
    assert prediction.instances.roi_masks.shape == (len(prediction.instances), 28, 28)


@pytest.mark.parametrize("iterations", [0, 3])
def test_images_without_instances(iterations):
    model = PanopticModel(tiny(iterations), THINGS, CLASSES)
    image, targets = scene(instances=False)
    losses = model.loss(model.image_batch([image]), [targets])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(losses[f"loss_mask_{t}"] == 0 for t in range(1, max(iterations, 1) + 1))
    # Every process of a run must have a gradient for every parameter.
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "config",
    [tiny(0), tiny(3, ranking=True), tiny(0, semantic_head=SemanticHeadConfig(channels=16, classes="stuff"))],
)
def test_a_network_without_things(config):
    model = PanopticModel(config, 0, 2)
    image, _ = scene(instances=False)
    index = (image[0] > 100).int()
    targets = Targets.from_panoptic(index, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), 0)
    losses = model.loss(model.image_batch([image]), [targets])
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    prediction = model.eval().predict(model.image_batch([image]))[0]
    assert len(prediction.instances) == 0
    assert prediction.sem_logits.shape == (len(model.semantic_classes), 16, 24)


@pytest.mark.parametrize(
    "name", ["rpn.objectness", "box_heads.stages.0.classifier", "box_heads.stages.0.regressor"]
)
def test_boxes_that_are_not_finite_are_reported_per_image(name):
    model = PanopticModel(tiny(0), THINGS, CLASSES).eval()
    image = scene()[0]
    sound = model.predict(model.image_batch([image]))[0]
    sound.check_finite("a.png")
    with torch.no_grad():
        model.get_submodule(name).bias[-1] = torch.nan
    broken = model.predict(model.image_batch([image]))[0]
    assert broken.instances.boxes.isfinite().all()
    assert broken.sem_logits.isfinite().all()
    with pytest.raises(RefineError, match=r"^a\.png: .* first proposals and box scores"):
        broken.check_finite("a.png")


def test_no_detection_at_all():
    model = PanopticModel(tiny(3, box_head=replace(tiny().box_head, score_threshold=1.0)), THINGS, CLASSES).eval()
    prediction = model.predict(model.image_batch([scene()[0]]))[0]
    assert len(prediction.instances) == 0
    assert prediction.instances.roi_masks.shape == (0, 28, 28)
    assert prediction.sem_logits.isfinite().all()


@pytest.mark.parametrize("iterations", [0, 3])
def test_a_few_steps_lower_the_loss(iterations):
    model = PanopticModel(tiny(iterations), THINGS, CLASSES)
    image, targets = scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(20):
        total = sum(model.loss(model.image_batch([image]), [targets]).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        totals.append(total.item())
    assert min(totals[-3:]) < 0.75 * totals[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fpn_channels": 32}, "make them equal"),
        ({"semantic_head": SemanticHeadConfig(channels=16, classes="stuff")}, "needs 'all'; change it"),
        ({"ibpp": IBPPConfig(3, sem_channels=16, mask_flow=True), "box_head": CASCADE}, "needs fixed boxes"),
    ],
)
def test_invalid_combinations_are_rejected(changes, words):
    with pytest.raises(RefineError, match=words):
        PanopticModel(tiny(3, **changes), THINGS, CLASSES)


def test_semantics_in_the_masks_need_all_classes():
    config = tiny(0, semantic_head=SemanticHeadConfig(channels=16, classes="stuff"))
    config.mask_head.semantic_weight = 0.25
    with pytest.raises(RefineError, match=r"needs semantic_head\.classes 'all'"):
        PanopticModel(config, THINGS, CLASSES)


def test_heads_pool_from_the_configured_levels(monkeypatch):
    from refine.ops import roi

    sizes = set()

    def assign_levels(boxes, levels, canonical_size):
        sizes.add(canonical_size)
        return original(boxes, levels, canonical_size)

    original = roi.assign_levels
    monkeypatch.setattr(roi, "assign_levels", assign_levels)
    image, _ = scene()
    model = PanopticModel(tiny(roi_canonical_size=50.0), THINGS, CLASSES).eval()
    calls = []
    for heads, name in ((model.box_heads, "_run"), (model.ibpp, "boxes")):
        sizes.clear()
        with monkeypatch.context() as patch:
            part = getattr(heads, name)

            def record(*arguments, part=part):
                sizes.clear()
                result = part(*arguments)
                calls.append(set(sizes))
                return result

            patch.setattr(heads, name, record)
            model.predict(model.image_batch([image]))
    assert calls == [{50.0}, {50.0}]
