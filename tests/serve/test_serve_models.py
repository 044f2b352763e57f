"""What `refine serve` computes: predictions, fusion with other settings, and their errors."""

import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

import refine.serve.models
import refine.serve.results
from refine.errors import RefineError
from refine.serve.actions import Actions
from refine.serve.models import MAX_PIXELS, Upload


def test_fusing_again_does_not_run_the_network(models, upload, monkeypatch):
    own = models.predictor("nuclei")
    threshold = own.fusion.score_threshold
    before = models.fuse(upload, own.method, own.fusion)
    monkeypatch.setattr(type(own.model), "predict", lambda *_: pytest.fail("the network ran"))
    scores = [s.score for s in before.segments if s.isthing]
    middle = statistics.median(scores)
    high = models.fuse(upload, own.method, replace(own.fusion, score_threshold=middle))
    assert 0 < sum(s.isthing for s in high.segments) < len(scores)
    assert all(s.score >= middle for s in high.segments if s.isthing)
    erased = models.fuse(upload, own.method, replace(own.fusion, unknown_erasing=True, ue_threshold=1.0))
    assert [s for s in before.segments if not s.isthing]
    assert not [s for s in erased.segments if not s.isthing]
    assert own.fusion.score_threshold == threshold < middle  # settings of one session do not leak


def test_errors_do_not_name_folders(models, upload, images, tmp_path, monkeypatch):
    text = tmp_path / "notes.png"
    text.write_text("no image")
    with pytest.raises(RefineError, match=r"^notes\.png: is not a supported image"):
        models.predict(text, "nuclei")
    own = models.predictor("nuclei")
    with pytest.raises(RefineError, match="no occlusion head"):
        models.fuse(upload, "soe", own.fusion)
    monkeypatch.setattr(refine.serve.models, "MAX_PIXELS", 1000)
    with pytest.raises(RefineError, match=r"^left\.png: has more than 1000 pixels"):
        models.predict(images[0], "nuclei")
    assert MAX_PIXELS > 1000


def test_possibly_missed_objects_are_displayed(models, upload, tmp_path, monkeypatch):
    predictor = models.predictor("nuclei")
    actions, visitor = Actions(models, tmp_path), SimpleNamespace(session_hash="visitor")
    serial, reduced = actions.uploads.begin("visitor", upload.path), replace(upload.prediction, scale=0.4)
    assert actions.uploads.put("visitor", replace(upload, prediction=reduced, serial=serial))
    settings = (visitor, predictor.method, 0.0, False, 0.5)
    (remark,) = actions.fuse(*settings)[0]["remarks"]
    assert remark.startswith("left.png is reduced to less than 50%")
    monkeypatch.setattr(predictor.network, "max_detections", len(upload.prediction.instances))
    full, _ = actions.fuse(*settings)[0]["remarks"]
    assert full.startswith("left.png is full")


def test_a_busy_network_is_reported_after_a_timeout(models, images, monkeypatch):
    monkeypatch.setattr(refine.serve.models, "PATIENCE", 0.01)
    with models._turn(), pytest.raises(RefineError, match="busy"):
        models.predict(images[0], "nuclei")
    assert isinstance(models.predict(images[0], "nuclei"), Upload)


def test_a_huge_image_is_rejected_by_its_header(models, tmp_path, monkeypatch):
    """A file of a few kilobytes may hold 48 million pixels of one colour."""
    path = tmp_path / "flat.png"
    Image.new("L", (8000, 6000)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(RefineError, match=r"^flat\.png: has more than 40000000 pixels"):
        models.predict(path, "nuclei")


def test_only_rules_whose_heads_the_model_has_are_offered(models):
    actions = pytest.importorskip("refine.serve.actions")
    method, *_ = actions.Actions(models, "uploads").own_settings("nuclei")
    assert [name for name, _ in method.choices] == ["heuristic", "shr"]
    assert "srm" in method.info
