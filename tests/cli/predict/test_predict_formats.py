"""Formats of the results (`--save`)."""

import json
import os
from dataclasses import replace

import pytest
from helpers.predict_runs import content, files, run

from refine.formats.journal import JOURNAL
from refine.savers import SAVERS

EVERY = ["coco", *SAVERS]


@pytest.fixture
def other_files(checkpoint, images, tmp_path, capsys):
    """Hashes of the files of an uninterrupted run that saves every format."""
    assert run(checkpoint, images, tmp_path / "every", "--recursive", "--save", ",".join(EVERY)) == 0
    capsys.readouterr()
    return files(tmp_path / "every")


def test_formats_are_chosen_by_name(checkpoint, images, whole, other_files, tmp_path, capsys):
    assert {name: other_files[name] for name in whole} == whole  # the default's files are the same
    assert {path.split("/")[0] for path in other_files} == {
        "panoptic.json", "sources.jsonl", "panoptic", "overlays", "labels", "classes", "objects.csv", "geojson",
        "cutouts", "parts", "instances.json", "fiftyone.json", "labelme", "cvat.xml", "labelstudio.json",
    }  # fmt: skip
    assert run(checkpoint, images, tmp_path / "some", "--recursive", "--save", "geojson") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"in {tmp_path / 'some'}")
    kept = ("panoptic", "geojson", "sources.jsonl")
    expected = {path: number for path, number in other_files.items() if path.split("/")[0] in kept}
    assert files(tmp_path / "some") == expected | {"panoptic.json": whole["panoptic.json"]}
    assert run(checkpoint, images, tmp_path / "none", "--save", "coco,tiff") == 1
    assert "--save: unknown format 'tiff'; choose from coco, overlay" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_resume_adds_missing_formats(checkpoint, images, other_files, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--recursive", "--resume", "--save", ",".join(EVERY)]
    assert run(checkpoint, images, out, "--recursive") == 0
    assert run(checkpoint, images, out, *words) == 0
    assert files(out) == other_files
    things = [path for path in other_files if path.startswith("cutouts/y/0/")]
    for path in ("labels/x/0.tif", "classes/x/1.tif", things[-1], "objects.csv"):
        (out / path).unlink()
    (out / things[0]).with_name("77.png").touch()  # an object of an earlier result
    (images / "x" / "00.png").write_bytes((images / "x" / "0.png").read_bytes())  # all later ids change
    capsys.readouterr()
    assert run(checkpoint, images, out, *words) == 0
    assert "1 of 5 images finished already" in capsys.readouterr().err
    assert not (out / things[0]).with_name("77.png").exists()
    ids = {image["file_name"]: image["id"] for image in content(out)["images"]}
    listed = json.loads((out / "fiftyone.json").read_text())
    assert {image["file_name"]: image["id"] for image in listed["images"]} == ids
    results = json.loads((out / "instances.json").read_text())
    assert {result["image_id"] for result in results} == set(ids.values())
    after = files(out)
    joint = {saver.joint for saver in SAVERS.values()} | {"panoptic.json", "sources.jsonl"}
    assert {path: after[path] for path in other_files if path not in joint} == {
        path: number for path, number in other_files.items() if path not in joint
    }
    assert joint - {None} <= set(after)


def test_a_format_that_fails_leaves_no_file_of_the_image(checkpoint, images, tmp_path, monkeypatch, capsys):
    def fail(item):
        yield b"first"
        raise MemoryError

    monkeypatch.setitem(SAVERS, "labels", replace(SAVERS["labels"], encode=fail))
    out = tmp_path / "out"
    assert run(checkpoint, images / "x", out, "--save", "geojson,labels,csv") == 1
    assert "x/0.png: does not fit into memory" in capsys.readouterr().err
    assert set(files(out)) <= {JOURNAL, "panoptic.json", "objects.csv", "failed.json"}


def test_an_image_whose_name_is_not_utf_8_concerns_no_other(checkpoint, images, tmp_path, capsys):
    (images / "x/0.png").rename(os.fsdecode(os.fsencode(images) + b"/x/M\xfcller.png"))  # from an old archive
    formats = ",".join(EVERY)
    assert run(checkpoint, images / "x", tmp_path / "out", "--save", formats) == 1
    assert "file_name 'M\\udcfcller.png' is not UTF-8; rename it" in capsys.readouterr().err
    (failure,) = json.loads((tmp_path / "out/failed.json").read_text())
    assert failure["error"].endswith("is not UTF-8; rename it")
    assert [image["file_name"] for image in content(tmp_path / "out")["images"]] == ["1.jpg"]
    assert "1.jpg" in (tmp_path / "out/objects.csv").read_text()
