"""Tests that a converted torchvision Mask R-CNN gives torchvision's boxes, scores and masks."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps

from refine.checkpoint.convert.convert import convert_file
from refine.files import write_json
from refine.inference.predictor import Predictor

SIZE = (192, 320)  # the coarsest map has 3 × 5 cells, 64 pixels apart in both directions
ODD = (160, 288)  # in torchvision its cells are 53 and 57 pixels apart


def network(build, classes: int) -> nn.Module:
    """Build a model whose random weights have a large enough spread to give distinct detections."""
    torch.manual_seed(0)
    model = build(
        weights=None, weights_backbone=None, num_classes=classes, min_size=1, box_score_thresh=0.05
    ).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("bn3.weight"):
                value.fill_(0.3)
        model.rpn.head.cls_logits.weight.normal_(0, 0.05)
        model.rpn.head.bbox_pred.weight.normal_(0, 0.01)
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.15)
        model.roi_heads.box_predictor.bbox_pred.weight.normal_(0, 0.02)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.normal_(0, 0.1)
    if build is maskrcnn_resnet50_fpn:
        overwrite_eps(model, 0.0)  # as torchvision does for the published weights
    return model


def original(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return torchvision's detections in network input pixels, with masks of 28 × 28."""
    model.transform.min_size, model.transform.max_size = (min(image.shape[1:]),), max(image.shape[1:])
    with torch.no_grad():
        images, _ = model.transform([image / 255])
        features = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, features)
        return model.roi_heads(features, proposals, images.image_sizes)[0][0]


@pytest.mark.parametrize(("build", "classes"), [(maskrcnn_resnet50_fpn, 6), (maskrcnn_resnet50_fpn_v2, 91)])
def test_detections_equal_torchvision(tmp_path, build, classes):
    model = network(build, classes)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    kinds = [{"id": n, "name": f"class {n}", "isthing": 1} for n in range(1, classes)]
    write_json(tmp_path / "classes.json", kinds)
    conversion = convert_file(tmp_path / "model.pth", tmp_path / "model", tmp_path / "classes.json")
    assert conversion.absent == ["semantic_head"]
    assert all(name.endswith("num_batches_tracked") for name in conversion.left)
    predictor = Predictor(tmp_path / "model", device="cpu")
    for size in (SIZE, ODD):
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        expected = original(model, image)
        got = predictor.model.predict(predictor.model.image_batch([image]))[0].instances
        assert len(got) == len(expected["scores"]) > 10
        distance = torch.cdist(got.boxes, expected["boxes"], p=float("inf"))
        distance[got.labels[:, None] != expected["labels"] - 1] = torch.inf
        order = distance.argmin(1)
        assert sorted(order.tolist()) == list(range(len(order)))
        assert (expected["scores"][order].diff() < 1e-4).all()
        assert (got.boxes - expected["boxes"][order]).abs().max() < 1e-2
        assert (got.scores - expected["scores"][order]).abs().max() < 1e-3
        assert (got.roi_masks - expected["masks"][order, 0]).abs().max() < 1e-3


def test_coco_ids_in_use_are_kept(tmp_path):
    """If unused COCO ids cannot win, removing them changes only the numbering."""
    model = network(maskrcnn_resnet50_fpn, 91)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    conversion = convert_file(tmp_path / "model.pth", tmp_path / "model")
    predictor = Predictor(tmp_path / "model", device="cpu")
    assert conversion.num_things == 80
    used = [c.id for c in predictor.categories if c.isthing]
    with torch.no_grad():
        unused = [n for n in range(1, 91) if n not in used]
        model.roi_heads.box_predictor.cls_score.bias[unused] = -1e4
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    expected = original(model, image)
    got = predictor.model.predict(predictor.model.image_batch([image]))[0].instances
    assert len(got) == len(expected["scores"]) > 10
    assert (got.scores - expected["scores"]).abs().max() < 1e-3
    names = [predictor.categories[label].id for label in got.labels]
    assert sorted(names) == sorted(expected["labels"].tolist())
    # The file has no semantic head, so no stuff is predicted.
    predictor.test_size = SIZE
    assert all(segment.isthing for segment in predictor(image).segments)
