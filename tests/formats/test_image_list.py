"""Tests of listing images and naming their results."""

import os
import re

import pytest

from refine.errors import RefineError
from refine.files import write_json
from refine.formats.image_list import list_images, result_names
from refine.formats.stream import results_info

FILES = (
    "b.JPG",
    "a.png",
    "notes.txt",
    "._a.png",
    "sub/c.webp",
    "sub/a.png",
    "sub/deep/a.png",
    "out/a.png",
    ".x/h.png",
)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(*sources, **options):
    return [file.name for file in list_images([str(source) for source in sources], **options)]


def test_files_folders_and_patterns(folder):
    assert names(folder) == ["a.png", "b.JPG"]
    assert names(folder / "b.JPG", folder) == ["b.JPG", "a.png"]
    assert names(f"{folder}/**/*.png") == ["a.png", "out/a.png", "sub/a.png", "sub/deep/a.png"]
    assert names(f"{folder}/sub/*") == ["a.png", "c.webp"]
    assert [file.id for file in list_images([str(folder)])] == [1, 2]
    (folder / "empty").mkdir()
    for nothing, problem in {
        "none.png": "does not exist; check the path",
        "*.bmp": "no image matches this pattern",
        ".x/*.jpg": "no image matches this pattern",
        "empty": "contains no image",
    }.items():
        with pytest.raises(RefineError, match=rf"{re.escape(str(folder / nothing))}: {problem}"):
            names(folder / nothing)


def test_subfolders_are_read_on_request_and_otherwise_noted(folder):
    every = ["a.png", "b.JPG", "sub/a.png", "sub/c.webp", "sub/deep/a.png"]
    assert names(folder, recursive=True, skip=folder / "out") == every
    notes = []
    assert names(folder, skip=folder / "out", notify=notes.append) == ["a.png", "b.JPG"]
    assert notes == [f"{folder}: skipped subfolders with images (1); add --recursive to read them"]
    (folder / "top").mkdir()
    (folder / "top" / "city").symlink_to(folder / "sub")
    with pytest.raises(RefineError, match=r"top: contains images only in subfolders; add --recursive"):
        names(folder / "top")
    assert names(folder / "top", recursive=True) == ["city/a.png", "city/c.webp", "city/deep/a.png"]
    os.symlink(folder, folder / "sub" / "loop")
    assert "sub/deep/a.png" in names(folder, recursive=True, skip=folder / "out")


def test_results_are_not_read_as_images(folder):
    """Neither those in the folder to skip, nor those of earlier runs: the panoptic.json beside them tells."""
    results = {"out/overlays/a.jpg", "out/labels/s/a.tif", "out/panoptic/a.png", "overlays/a.jpg"}
    for name in results:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    images = {"a.png", "b.JPG", "sub/a.png", "sub/c.webp", "sub/deep/a.png"}
    for kind in ({"recursive": True}, {}):
        source, notes = folder if kind else f"{folder}/**/*", []
        assert set(names(source, **kind)) == images | results | {"out/a.png"}
        assert set(names(source, **kind, skip=folder / "out")) == images | {"overlays/a.jpg"}
        for place in (folder, folder / "out"):
            write_json(place / "panoptic.json", {"info": results_info(None), "images": []})
        assert set(names(source, **kind, notify=notes.append)) == images | {"out/a.png"}
        assert notes == [f"{place}: skipped the results of refine in it" for place in (folder, folder / "out")]
        assert names(folder / "overlays") == names(f"{folder}/overlays/*") == ["a.jpg"]  # named by the user
        for place in (folder, folder / "out"):  # a ground truth
            write_json(place / "panoptic.json", {"images": [], "info": {}})


def test_equal_names_of_results_raise(folder):
    assert list(result_names(list_images([f"{folder}/**/a.png"]))) == ["a", "out/a", "sub/a", "sub/deep/a"]
    with pytest.raises(
        RefineError, match=r"sub/a\.png: its results would be named 'a' like those of .*/out/a\.png"
    ):
        result_names(list_images([str(folder / "out"), str(folder / "sub")]))
    (folder / "a.jpg").touch()
    with pytest.raises(RefineError, match=r"rename one$"):  # in one folder, --recursive would not help
        result_names(list_images([str(folder)]))
