"""Views and downloads of `refine serve`."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.served import decoded, pixels

import refine.serve.models
import refine.serve.results
from refine.cli.main import main
from refine.drawing.overlay import JPEG_SIDE
from refine.serve.results import VIEW_SIDE, archive_file, overlay_file, view
from refine.structures import Categories, Category, PanopticResult, rgb_to_id


def test_the_view_describes_the_pixels(models, upload, monkeypatch):
    own = models.predictor("nuclei")
    result = models.fuse(upload, own.method, own.fusion)
    shown = view(upload, result)
    assert (shown["name"], shown["width"], shown["height"]) == ("left.png", 640, 480)
    ids = rgb_to_id(pixels(shown["ids"]))
    assert (ids == result.segment_ids.numpy()).all()
    areas = {i: int((ids == i).sum()) for i in np.unique(ids) if i}
    assert {s["id"]: s["area"] for s in shown["segments"]} == areas
    assert {s["name"] for s in shown["segments"]} == {"nucleus", "background"}
    assert pixels(shown["image"]).shape == pixels(shown["overlay"]).shape == (480, 640, 3)
    json.dumps(shown)
    # Larger images are displayed smaller; areas remain those of the original image.
    monkeypatch.setattr(refine.serve.results, "VIEW_SIDE", 160)
    small = view(upload, result)
    assert pixels(small["ids"]).shape == pixels(small["overlay"]).shape == (120, 160, 3)
    assert set(np.unique(rgb_to_id(pixels(small["ids"])))) <= set(np.unique(ids))
    assert small["segments"] == shown["segments"]
    assert VIEW_SIDE >= 1000


def test_downloads_equal_the_files_of_refine_predict(models, upload, images, tmp_path):
    own = models.predictor("nuclei")
    result = models.fuse(upload, own.method, own.fusion)
    download = archive_file(upload, result)
    assert download["name"] == "left_panoptic.zip"
    with zipfile.ZipFile(io.BytesIO(decoded(download["data"]))) as archive:
        archive.extractall(tmp_path / "page")
    assert (
        main(
            [
                "predict",
                str(images[0]),
                "-o",
                str(tmp_path / "predict"),
                "--device",
                "cpu",
                "--checkpoint",
                "nuclei",
            ]
        )
        == 0
    )
    files = {p.relative_to(tmp_path / "predict") for p in (tmp_path / "predict").rglob("*.*")}
    files.discard(Path("sources.jsonl"))  # for --resume
    assert files == {Path("panoptic.json"), Path("panoptic/left.png"), Path("overlays/left.jpg")}
    page, predict = ((tmp_path / name / "panoptic.json").read_text() for name in ("page", "predict"))
    page, predict = json.loads(page), json.loads(predict)
    assert page.pop("info")["model"] == predict.pop("info")["model"] == "nuclei"
    # The page keeps detections below the threshold, and convolutions of more boxes round differently.
    ours, theirs = (
        [s.pop("score") for a in side["annotations"] for s in a["segments_info"]] for side in (page, predict)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert page == predict
    for file in files - {Path("panoptic.json")}:
        assert (tmp_path / "page" / file).read_bytes() == (tmp_path / "predict" / file).read_bytes()
    assert overlay_file(upload, result)["name"] == "left_overlay.jpg"
    assert pixels(overlay_file(upload, result)["data"]).shape == (480, 640, 3)


def test_images_that_are_too_long_for_a_jpeg_can_be_saved(upload, tmp_path):
    size = (4, JPEG_SIDE + 1)
    long = replace(upload, path=tmp_path / "long.png", image=torch.zeros(3, *size, dtype=torch.uint8))
    result = PanopticResult(torch.zeros(size, dtype=torch.int32), [], Categories([Category(1, "cell", True)]))
    drawn = overlay_file(long, result)
    assert drawn["name"] == "long_overlay.png"
    assert pixels(drawn["data"]).shape == (*size, 3)
    with zipfile.ZipFile(io.BytesIO(decoded(archive_file(long, result)["data"]))) as archive:
        assert archive.namelist() == ["panoptic/long.png", "panoptic.json"]
