"""The module that is exported, run by PyTorch, against `Predictor` and `refine.fuse`."""

from dataclasses import replace

import pytest
import torch
from helpers.exported import CATEGORIES, CONFIGS, export_model, image_of, run, tiny_model
from helpers.scenes import scene

from refine.errors import RefineError
from refine.export.boxes import Detections
from refine.export.network import Output
from refine.export.panoptic import THRESHOLDS
from refine.export.verify import compare, require
from refine.fusion import FusionConfig, fuse
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.structures import Categories, Instances


@pytest.mark.parametrize("kind", CONFIGS)
def test_exported_module_equals_predictor(kind):
    saved = tiny_model(kind)
    module = export_model(saved)
    images = [(str(size), image_of(size)) for size in ((120, 160), (64, 256))]
    agreements = compare(Predictor(saved), lambda image: run(module, image), images)
    for agreement in agreements:
        assert agreement.good, str(agreement)
        assert agreement.segments[0] > 1


def test_images_without_detections_have_stuff_only():
    saved = tiny_model("residual balanced REFINE")
    with torch.no_grad():
        for stage in saved.model.box_heads.stages:
            stage.classifier.bias.copy_(torch.tensor([-20.0, -20, -20, 20]))
    found = run(export_model(saved), image_of((90, 70)))
    assert len(found["instance_boxes"]) == 0
    assert found["occlusion"].shape == (0, 0)
    result = Predictor(saved)(image_of((90, 70)))
    assert (found["segment_ids"] == result.segment_ids.numpy()).all()
    assert not found["segments_isthing"].any()
    assert len(found["segments_id"]) == len(result) > 0


CHANGES = {
    "heuristic": {},
    "shr": {},
    "ocfusion": {},
    "soe": {},
    "soe, wins": {"resolve": "wins"},
    "soe, no recheck": {"recheck": False},
    "soe, nothing covered": {"overlap_threshold": 0.0},
    "soe, soft scores": {"soft_scores": True},
    "heuristic, unknown erasing": {"unknown_erasing": True, "ue_threshold": 0.55, "ue_radius": 60},
}


@pytest.mark.parametrize("rule", CHANGES)
def test_fusion_equals_fuse(rule, monkeypatch):
    method = rule.partition(",")[0]
    config = FusionConfig(**({"score_threshold": 0.3, "stuff_area": 12} | CHANGES[rule]))
    saved = replace(tiny_model("residual balanced REFINE"), method=method, fusion=config)
    module = export_model(saved)
    thresholds = {name: torch.tensor(float(getattr(config, name)), dtype=torch.float64) for name in THRESHOLDS}
    for seed in (0, 1, 2, 11):
        drawn = scene(seed, count=200 if seed == 11 else 9, size=(40, 60))
        count = len(drawn.instances)
        instances = replace(drawn.instances, masks=None, roi_masks=_blobs(count))
        instances.scores = instances.scores.sort(descending=True).values
        occlusion = drawn.occlusion

        def known(head, output, index, labels, pairs, occlusion=occlusion):
            return occlusion[index][:, index]

        monkeypatch.setattr("refine.export.panoptic.evaluate", known)
        expected = fuse(
            instances,
            drawn.sem_seg,
            categories=CATEGORIES,
            method=method,
            sem_confidence=drawn.confidence,
            occlusion=occlusion,
            config=config,
        )
        module.keys = torch.randint(1, 2**50, (count + 2,))
        with torch.no_grad():
            found = module.fuse(_output(instances), instances.boxes, drawn.sem_seg, drawn.confidence, thresholds)
        assert torch.equal(found["segment_ids"], expected.segment_ids), f"seed {seed}"
        for n, segment in enumerate(expected.segments):
            given = [
                found[f"segments_{name}"][n].tolist() for name in ("id", "category_id", "isthing", "area", "bbox")
            ]
            assert given == [segment.id, segment.category_id, segment.isthing, segment.area, list(segment.bbox)]
            assert found["segments_score"][n].item() == pytest.approx(segment.score, abs=1e-5)
            assert found["segments_instance"][n].item() == (-1 if segment.instance is None else segment.instance)


def _blobs(count: int) -> torch.Tensor:
    """Return smooth random masks, Tensor[count, 28, 28]."""
    coarse = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(count))
    return torch.nn.functional.interpolate(coarse, (28, 28), mode="bicubic")[:, 0].clamp(0, 1)


def _output(instances: Instances) -> Output:
    found = Detections(instances.boxes, instances.scores, instances.labels)
    empty = torch.zeros(len(instances), 0, 14, 14)
    assert instances.roi_masks is not None
    return Output(found, instances.roi_masks, empty, torch.zeros(0), torch.zeros(2))


def test_what_cannot_be_exported_is_refused():
    saved = tiny_model("Panoptic-FPN")
    with pytest.raises(RefineError, match="srm"):
        export_model(replace(saved, method="srm"))
    with pytest.raises(RefineError, match="ue_region"):
        export_model(replace(saved, fusion=saved.fusion.changed({"ue_region": "dilated"})))
    stuff = Categories(category for category in saved.categories if not category.isthing)
    with pytest.raises(RefineError, match="without things"):
        export_model(replace(saved, model=PanopticModel(saved.model.config, 0, len(stuff)), categories=stuff))
    saved.model.config = replace(saved.model.config, divisor=16)
    with pytest.raises(RefineError, match="divisor"):
        export_model(saved)


def test_a_model_that_differs_is_refused():
    saved = tiny_model("Panoptic-FPN")
    module = export_model(saved)
    images = [("scene", image_of((64, 96)))]
    agreements = compare(Predictor(saved), lambda image: run(module, image, score_threshold=0.9), images)
    with pytest.raises(RefineError, match=r"differs from PyTorch.*scene"):
        require(agreements)
