"""The whole network on tiny images."""

import re
from dataclasses import replace

import pytest
import torch

from refine.errors import RefineError
from refine.modeling.config import (
    BackboneConfig,
    BoxHeadConfig,
    IBPPConfig,
    LossConfig,
    MaskHeadConfig,
    ModelConfig,
    OcclusionConfig,
    SemanticHeadConfig,
)
from refine.modeling.losses import instance_weight, semantic_targets, semantic_weight
from refine.modeling.model import PanopticModel
from refine.modeling.norms import valid_pixels
from refine.modeling.semantic_head import pad_labels, semantic_loss
from refine.structures import VOID, Targets
from refine.training.optim import freeze_except
from refine.training.update import train_mode

THINGS, CLASSES = 2, 4


def tiny(iterations=3, **changes) -> ModelConfig:
    config = ModelConfig(
        backbone=BackboneConfig(
            "resnet50", weights=None, frozen_stages=0, stem_width=8, width_per_group=8, res2_channels=32
        ),
        fpn_channels=16,
        box_head=BoxHeadConfig(num_convs=1, conv_channels=16, fc_channels=32, samples=32, max_detections=10),
        mask_head=MaskHeadConfig(num_convs=2, channels=16),
        semantic_head=SemanticHeadConfig(channels=16),
        ibpp=IBPPConfig(iterations, sem_channels=16),
    )
    return replace(config, **changes)


CASCADE = BoxHeadConfig(
    ious=[0.5, 0.6, 0.7], class_agnostic=True, num_convs=0, fc_channels=32, samples=32, max_detections=10
)


def scene(instances=True):
    """Return an image of two thing squares on two halves of stuff, and its targets."""
    image = torch.full((3, 64, 96), 60, dtype=torch.uint8)
    index = torch.zeros(64, 96, dtype=torch.int32)
    index[:, 48:] = 1
    image[:, :, 48:] = 120
    if instances:
        index[10:40, 8:40], index[20:50, 56:88] = 2, 3
        image[0, 10:40, 8:40], image[1, 20:50, 56:88] = 250, 250
    index[:2] = -1
    labels = torch.tensor([2, 3, 0, 1])
    return image, Targets.from_panoptic(index, labels, torch.zeros(4, dtype=torch.bool), THINGS)


@pytest.mark.parametrize(
    ("config", "masks", "semantics"),
    [
        (tiny(0), 1, 1),
        (tiny(1), 1, 2),
        (tiny(3), 3, 4),
        (tiny(3, ibpp=IBPPConfig(3, shared=True, sem_channels=16)), 3, 4),
        (tiny(3, ibpp=IBPPConfig(3, mask_flow=True, sem_channels=16)), 3, 4),
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
    untouched = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched
    prediction = model.eval().predict(model.image_batch([image]))[0]
    assert prediction.image_size == (64, 96)
    assert prediction.sem_logits.shape == (len(model.semantic_classes), 16, 24)
    assert prediction.instances.roi_masks.shape == (len(prediction.instances), 28, 28)


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


def test_batching_changes_nothing():
    model = PanopticModel(tiny(2, box_head=replace(tiny().box_head, score_threshold=0.0)), THINGS, CLASSES).eval()
    image = scene()[0]
    batch = model.predict(model.image_batch([image, image.flip(2)]))
    for single, of_batch in zip((image, image.flip(2)), batch, strict=True):
        alone = model.predict(model.image_batch([single]))[0]
        torch.testing.assert_close(of_batch.sem_logits, alone.sem_logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(of_batch.instances.scores, alone.instances.scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("iterations", [0, 2])
def test_a_larger_neighbour_changes_nothing(iterations):
    """Statistics and upsampling ignore the padding."""
    torch.manual_seed(0)
    box_head = replace(tiny().box_head, score_threshold=1.0)
    model = PanopticModel(tiny(iterations, box_head=box_head), THINGS, CLASSES).eval()
    small, large = scene()[0], torch.randint(0, 255, (3, 192, 256), dtype=torch.uint8)
    (alone,), together = model.predict(model.image_batch([small])), model.predict(model.image_batch([small, large]))
    torch.testing.assert_close(together[0].sem_logits[:, :16, :24], alone.sem_logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
def test_padding_changes_nothing_of_what_is_learnt(size):
    """Nothing, whether sides are multiples of 32 or not."""
    torch.manual_seed(0)
    model = PanopticModel(tiny(2), THINGS, CLASSES)
    image, targets = scene()
    image, sem_seg = image[:, : size[0], : size[1]], targets.sem_seg[: size[0], : size[1]]
    one, padded = model.image_batch([image]), model.image_batch([image, image.new_zeros(3, 192, 256)])
    padded.tensor, padded.sizes = padded.tensor[:1], padded.sizes[:1]
    losses = []
    for batch in (one, padded):
        with valid_pixels(batch):
            features = model.semantic_head.features(model.pyramid(batch)[:4])
        height, width = batch.tensor.shape[2:]
        labels = pad_labels([sem_seg], (height, width))
        losses.append(semantic_loss(model.semantic_head(features), labels, full_size=False))
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 2])
def test_detections_below_min_score_change_nothing(iterations):
    config = tiny(iterations, box_head=replace(tiny().box_head, score_threshold=0.0))
    model = PanopticModel(config, THINGS, CLASSES).eval()
    batch = model.image_batch([scene()[0]])
    scores = model.predict(batch)[0].instances.scores
    low, high = scores.quantile(0.3), scores.quantile(0.6)
    config.ibpp.score_threshold = float(low)  # painted on the canvas even if below min_score
    for wanted, kept in (
        (high, low if iterations else high),
        (low, low),
        (scores.quantile(0.1), scores.quantile(0.1)),
    ):
        (whole,), (part,) = model.predict(batch), model.predict(batch, float(wanted))
        count = int((scores >= kept).sum())
        assert 0 < count == len(part.instances) < len(scores)
        torch.testing.assert_close(part.sem_logits, whole.sem_logits, atol=1e-5, rtol=1e-4)
        masks = whole.instances.roi_masks[:count]
        torch.testing.assert_close(part.instances.roi_masks, masks, atol=1e-5, rtol=1e-4)


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
