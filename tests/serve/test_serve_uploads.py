"""Uploads of `refine serve`: their sizes, and when they are deleted."""

from dataclasses import replace
from pathlib import Path

import torch

from refine.ops.masks import MaskRuns
from refine.serve.models import Uploads


def test_uploads_are_kept_by_bytes_and_their_files_deleted(tmp_path, upload):
    def put(visitor: str) -> Path:
        path = tmp_path / f"{visitor}.png"
        path.write_bytes(b"x")
        uploads.put(visitor, replace(upload, path=path))
        return path

    example = tmp_path.parent / "example.png"
    example.write_bytes(b"an example")
    uploads = Uploads(tmp_path, [example], capacity=2 * upload.nbytes)
    assert upload.nbytes > 9 * 640 * 480  # image, classes and confidences
    first, second = put("first"), put("second")
    assert uploads.get("first") is not None
    third = put("third")  # the second is least recently used
    assert uploads.get("second") is None
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    uploads.put("first", replace(upload, path=first))  # the same file under another model
    assert first.exists()
    uploads.drop("first")
    assert not first.exists()
    uploads.put("same", replace(upload, path=third))
    uploads.drop("third")
    assert third.exists()  # another session uploaded the same file
    copy = tmp_path / "copy.png"
    copy.write_bytes(b"an example")
    for path in (example, copy):
        uploads.put("third", replace(upload, path=path))
        uploads.drop("third")
        assert path.exists()
    alone = Uploads(tmp_path, capacity=1)
    alone.put("a", upload)
    assert alone.get("a") is upload


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
