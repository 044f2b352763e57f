"""Tests of saving, drawing and displaying a panoptic result."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from refine.drawing.overlay import overlay
from refine.errors import RefineError
from refine.evaluation.panoptic_files import evaluate_files
from refine.structures import Categories, Category, PanopticResult, Segment, rgb_to_id

CATEGORIES = Categories([Category(7, "cat", True, (200, 40, 40)), Category(9, "sky", False, (70, 130, 180))])


@pytest.fixture
def result() -> PanopticResult:
    ids = torch.zeros(6, 8, dtype=torch.int32)
    ids[1:4, 2:7], ids[4:] = 1, 2
    segments = [Segment(1, 7, True, 0.9, 15, (2, 1, 5, 3), 0), Segment(2, 9, False, None, 16, (0, 4, 8, 2))]
    return PanopticResult(ids, segments, CATEGORIES)


@pytest.mark.parametrize("name", ["found.png", "out"])
def test_saved_files_match_the_result(result: PanopticResult, name: str, tmp_path) -> None:
    path = result.save(tmp_path / name, file_name="street.jpg", image_id=5)
    folder = tmp_path / name / "panoptic" if name == "out" else tmp_path
    assert path == (tmp_path / "out/panoptic.json" if name == "out" else tmp_path / "found.json")
    content = json.loads(path.read_text())
    assert content["images"] == [{"id": 5, "file_name": "street.jpg", "height": 6, "width": 8}]
    assert content["categories"] == CATEGORIES.to_json()
    (annotation,) = content["annotations"]
    assert annotation == result.to_coco(5, "street.png" if name == "out" else "found.png")
    assert annotation["segments_info"][0] == {
        "id": 1, "category_id": 7, "isthing": True, "score": 0.9, "area": 15, "bbox": [2, 1, 5, 3], "iscrowd": 0,
    }  # fmt: skip
    png = np.asarray(Image.open(folder / annotation["file_name"]))
    assert np.array_equal(rgb_to_id(png), result.segment_ids.numpy())
    assert evaluate_files(path, folder, path, folder).pq == 1


def test_paths_that_cannot_be_written_raise(result: PanopticResult, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefineError, match="file"):
        result.save(tmp_path / "file" / "out")
    with pytest.raises(RefineError, match="file"):
        result.save(tmp_path / "file" / "found.png")


def test_a_segment_that_is_not_there_has_no_mask(result: PanopticResult) -> None:
    assert [int(result.mask(number).sum()) for number in (0, 1, 2)] == [17, 15, 16]
    with pytest.raises(KeyError, match="3"):
        result.mask(3)


def test_saving_replaces_no_results_of_other_images(result: PanopticResult, tmp_path) -> None:
    """Neither those of `refine predict` nor those saved before; of the same image, it does."""
    path = result.save(tmp_path, file_name="a.png")
    assert path == result.save(tmp_path, formats="labels", file_name="a.png")
    before = path.read_bytes()
    with pytest.raises(
        RefineError, match=r"lists a\.png, and would list b\.png alone; give each image its own folder"
    ):
        result.save(tmp_path, file_name="b.png")
    path.write_text(json.dumps(json.loads(before) | {"info": {"description": "COCO"}}))
    with pytest.raises(RefineError, match=r"panoptic\.json: was not written by this version"):
        result.save(tmp_path, file_name="a.png")
    assert not (tmp_path / "panoptic/b.png").exists()
    mine = tmp_path / "mine/labels/a.tif"
    mine.parent.mkdir(parents=True)
    mine.write_text("drawn by hand")
    with pytest.raises(RefineError, match=r"mine/labels: was not written by this version of refine"):
        result.save(tmp_path / "mine", formats="labels", file_name="a.png")
    assert [path for path in mine.parents[1].rglob("*") if path.is_file()] == [mine]


def test_saving_replaces_no_result_of_another_image_of_the_same_name(result: PanopticResult, tmp_path) -> None:
    """Of the same image it does: known by its file, by equal segments, or because the caller names it."""
    out, others = tmp_path / "out", replace(result, segments=[replace(s, score=0.5) for s in result.segments])
    path = result.save(out)
    assert path == result.save(out, formats="labels")  # a cell of a notebook that runs twice
    before = path.read_bytes()
    with pytest.raises(RefineError, match=r"its image\.png may be another .* or pass file_name='image\.png' to"):
        others.save(out)
    assert path.read_bytes() == before
    others.save(out, file_name="image.png")
    assert path.read_bytes() != before

    for name in ("one", "two"):  # of the same name and size
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / name / "a.png")
        os.utime(tmp_path / name / "a.png", ns=(0, ord(name[0])))
    one, two = tmp_path / "one/a.png", tmp_path / "two/a.png"
    out = tmp_path / "files"
    replace(result, path=one).save(out)
    replace(others, path=one).save(out)  # the same image, predicted with another threshold
    assert json.loads((out / "panoptic.json").read_text())["images"][0]["file_name"] == "a.png"
    with pytest.raises(RefineError, match=r"its a\.png may be another image"):
        replace(result, path=two).save(out)
    with pytest.raises(RefineError, match=r"its a\.png may be another image"):
        result.save(out, image=two)


def test_saving_a_png_replaces_no_image_and_no_annotation(result: PanopticResult, tmp_path) -> None:
    path = tmp_path / "a.png"
    assert result.save(path) == result.save(path) == tmp_path / "a.json"  # its own files it does
    for name, content in (("photo.png", b"image"), ("note.json", b'{"shapes": []}'), ("other.json", b"[]")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RefineError, match=f"{name}: is not a result of refine, and would be replaced"):
            result.save((tmp_path / name).with_suffix(".png"))
        assert (tmp_path / name).read_bytes() == content


def test_overlay_accepts_every_image_type(result: PanopticResult, tmp_path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = overlay(tensor, result).permute(1, 2, 0).numpy()
    for kind in (image, tensor, Image.fromarray(image), tmp_path / "image.png"):
        assert np.array_equal(np.asarray(result.overlay(kind)), expected)
    with pytest.raises(ValueError, match="overlay: image"):
        result.overlay(image[1:])


def test_notebook_display_shows_the_segments(result: PanopticResult) -> None:
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert (shown.format, shown.size) == ("PNG", (8, 6))
    assert len(np.unique(np.asarray(shown).reshape(-1, 3), axis=0)) > 2


def test_other_formats_are_saved_beside_the_coco_files(result: PanopticResult, tmp_path) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    options = {"file_name": "a/street.jpg", "image": image, "mpp": 2.0}
    assert result.save(tmp_path / "out", formats="labels,csv,overlay", **options) == tmp_path / "out/panoptic.json"
    names = {str(p.relative_to(tmp_path / "out")) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "panoptic.json", "panoptic/a/street.png", "labels/a/street.tif", "classes/a/street.tif", "objects.csv",
        "overlays/a/street.jpg", "parts/csv/a/street.json",
    }  # fmt: skip
    assert ",60.0," in (tmp_path / "out/objects.csv").read_text()  # 15 pixels of 4 µm²
    with pytest.raises(ValueError, match="needs the image"):
        result.save(tmp_path / "other", formats=["csv"])
    assert not any(path.is_file() for path in (tmp_path / "other").rglob("*"))
    with pytest.raises(ValueError, match="give a folder"):
        result.save(tmp_path / "one.png", formats=["geojson"])
    with pytest.raises(ValueError, match="expected a folder, or the name of a PNG"):
        result.save(tmp_path / "one.jpg")
