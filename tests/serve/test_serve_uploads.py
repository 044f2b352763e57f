"""Uploads of `refine serve`: their sizes, and when they are deleted."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from refine.fusion.config import FusionConfig
from refine.ops.masks import MaskRuns
from refine.serve.models import Uploads
from refine.structures import Categories, Category, PanopticResult

CATEGORIES = Categories([Category(1, "cell", True)])


def test_uploads_are_kept_by_bytes_and_their_files_deleted(tmp_path, upload):
    def put(visitor: str) -> Path:
        path = tmp_path / f"{visitor}.png"
        path.write_bytes(b"x")
        opened(visitor, path)
        return path

    def opened(visitor: str, path: Path) -> None:
        assert uploads.put(visitor, replace(upload, path=path, serial=uploads.begin(visitor, path)))

    example = tmp_path.parent / "example.png"
    example.write_bytes(b"an example")
    uploads = Uploads(tmp_path, [example], capacity=2 * upload.nbytes)
    assert upload.nbytes > 9 * 640 * 480  # image, classes and confidences
    first, second = put("first"), put("second")
    assert uploads.get("first") is not None
    third = put("third")  # the second is least recently used
    assert uploads.get("second") is None
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    opened("first", first)  # the same file under another model
    assert first.exists()
    uploads.drop("first")
    assert not first.exists()
    opened("same", third)
    uploads.drop("third")
    assert third.exists()  # another session uploaded the same file
    copy = tmp_path / "copy.png"
    copy.write_bytes(b"an example")
    for path in (example, copy):
        opened("third", path)
        uploads.drop("third")
        assert path.exists()
    alone = Uploads(tmp_path, capacity=1)
    whole = replace(upload, serial=alone.begin("a", upload.path))
    assert alone.put("a", whole)
    assert alone.get("a") is whole


@pytest.mark.parametrize("event", ["clear", "leave", "another image", "another model"])
def test_an_upload_that_is_removed_while_it_is_predicted_stays_removed(event, upload, tmp_path):
    """Events of one page run in parallel; what a visitor did last counts."""
    pytest.importorskip("gradio")
    from refine.serve.actions import Actions

    def predict(path, model):
        if path.endswith("first.png") and model == "nuclei":  # the event comes while the network runs
            later[event]()
        return replace(upload, model=model, path=Path(path))

    def start(path, model="nuclei"):
        return actions.open(visitor, str(path), model, "heuristic", 0.5, False, 0.5)

    first, second = tmp_path / "first.png", tmp_path / "second.png"
    first.write_bytes(b"x")
    second.write_bytes(b"y")
    models = SimpleNamespace(predict=predict, remarks=lambda *_: [])
    visitor, actions = SimpleNamespace(session_hash="visitor"), Actions(models, tmp_path)
    models.fuse = lambda upload, *_: PanopticResult(torch.zeros(480, 640, dtype=torch.int32), [], CATEGORIES)
    models.predictor = lambda _: SimpleNamespace(fusion=FusionConfig())
    later = {
        "clear": lambda: actions.close(visitor),
        "leave": lambda: actions.leave(visitor),
        "another image": lambda: start(second),
        "another model": lambda: start(first, "photographs"),
    }
    shown = start(first)
    assert shown == (gr_skip(), gr_skip())  # the page stays as the later event left it
    kept = actions.uploads.get("visitor")
    assert (kept and (kept.path, kept.model)) == {
        "another image": (second, "nuclei"),
        "another model": (first, "photographs"),
    }.get(event)
    assert first.exists() == (event == "another model")


def test_after_an_error_the_previous_image_is_not_fused_again(models, upload, images, tmp_path):
    pytest.importorskip("gradio")
    from refine.serve.actions import Actions

    actions, visitor = Actions(models, tmp_path), SimpleNamespace(session_hash="visitor")
    settings = ("heuristic", 0.5, False, 0.5)
    before = tmp_path / "before.png"
    before.write_bytes(b"x")
    actions.uploads.put("visitor", replace(upload, path=before, serial=actions.uploads.begin("visitor", before)))
    assert actions.fuse(visitor, *settings)[0]["name"] == "before.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    assert "error" in actions.open(visitor, str(bad), "nuclei", *settings)[0]
    assert actions.fuse(visitor, *settings) == (gr_skip(), gr_skip())
    actions.leave(visitor)
    assert not bad.exists()
    assert not before.exists()


def gr_skip():
    import gradio

    return gradio.skip()


def test_the_size_of_an_upload_includes_all_tensors(models, upload, images, monkeypatch):
    assert upload.prediction.sem_probabilities is None
    predictor = models.predictor("nuclei")
    monkeypatch.setattr(predictor, "fusion", replace(predictor.fusion, ue_region="dilated"))
    dilated = models.predict(images[0], "nuclei")
    probabilities = dilated.prediction.sem_probabilities
    logits, classes = probabilities.logits, probabilities.classes
    assert logits.nbytes > 0
    assert dilated.nbytes == upload.nbytes + logits.nbytes + classes.nbytes
    starts, ends, of = torch.tensor([0, 9]), torch.tensor([5, 12]), torch.tensor([0, 1])
    instances = replace(upload.prediction.instances[:2], runs=MaskRuns((480, 640), 2, of, starts, ends))
    with_runs = replace(upload, prediction=replace(upload.prediction, instances=instances))
    without = replace(instances, runs=None)
    without_runs = replace(upload, prediction=replace(upload.prediction, instances=without))
    assert with_runs.nbytes == without_runs.nbytes + 3 * 2 * 8
