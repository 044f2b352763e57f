"""Tests of `refine import` for label images and binary masks, against masks drawn by Pillow."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.converted import convert, draw_image, draw_mask, refused, same_objects
from helpers.disk import full_disk
from PIL import Image

from refine.cli.main import main

MASKS = [
    draw_mask("ellipse", 5, 5, 25, 30),
    draw_mask("rectangle", 26, 5, 50, 20),
    draw_mask("ellipse", 40, 30, 70, 55),
]
VALUES = np.select(MASKS, [1, 7, 250])


def save_labels(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("masks/a.png", VALUES.astype(np.uint8)),
        ("masks/a.png", (VALUES * 200).astype(np.uint16)),
        ("labels/a.tif", (VALUES * 200).astype(np.uint16)),
        ("labels/a.tif", (VALUES * 70_000).astype(np.uint32)),
        ("labels/a.tif", (VALUES * 70_000).astype(np.int32)),
        ("labels/a.tif", VALUES.astype(np.float32)),
        ("masks/a.npy", VALUES.astype(np.int64)),
        ("masks/a.png", np.stack([VALUES.astype(np.uint8)] * 3, 2)),
        ("masks/a_mask.tif", VALUES.astype(np.uint8)),
    ],
)
def test_label_images_of_all_depths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, values: np.ndarray
) -> None:
    draw_image(tmp_path / "data/images/a.png")
    save_labels(tmp_path / "data" / file, values)
    found = convert(capsys, tmp_path / "out", tmp_path / "data", "--class", "cell")
    assert found.categories == {"cell": (1, 1), "background": (2, 0)}
    assert same_objects(found.masks("a.png", "cell"), MASKS)
    assert same_objects(found.masks("a.png", "background"), [VALUES == 0])
    assert (found.counts["objects"], found.counts["lost"], found.counts["void"]) == (3, 0, 0)
    assert found.counts["gained"] == np.count_nonzero(VALUES == 0)


def test_palette_labels_are_their_indices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_image(tmp_path / "data/images/a.jpg")
    image = Image.fromarray(VALUES.astype(np.uint8), "P")
    image.putpalette([0, 0, 0] * 256)  # all indices look alike
    (tmp_path / "data/masks").mkdir()
    image.save(tmp_path / "data/masks/a.png")
    found = convert(capsys, tmp_path / "out", "labels", tmp_path / "data", "--background", "void")
    assert same_objects(found.masks("a.jpg", "object"), MASKS)
    assert found.counts["void"] == np.count_nonzero(VALUES == 0)
    assert list(found.categories) == ["object"]


def test_names_of_cellpose_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("000_img.png", "b.png", "forgotten.png"):
        draw_image(tmp_path / "data" / name)
    save_labels(tmp_path / "data/000_masks.png", VALUES.astype(np.uint16))
    save_labels(tmp_path / "data/b_cp_masks.tif", (VALUES * (VALUES > 1)).astype(np.uint16))
    save_labels(tmp_path / "data/gone_masks.png", VALUES.astype(np.uint8))
    found = convert(capsys, tmp_path / "out", tmp_path / "data")
    assert same_objects(found.masks("000_img.png", "object"), MASKS)
    assert same_objects(found.masks("b.png", "object"), MASKS[1:])
    assert "left out: 1 image without a label image" in found.output
    assert "left out: 1 label image without an image, such as" in found.output
    assert "gone_masks.png" in found.output


def test_separate_folder_of_labels_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = draw_image(tmp_path / "raw/day 1/a.png")
    save_labels(tmp_path / "truth/day 1/a.tif", VALUES.astype(np.uint16))
    arguments = ("labels", tmp_path / "raw", "--labels", tmp_path / "truth")
    found = convert(capsys, tmp_path / "linked", *arguments)
    assert (tmp_path / "linked/images/day 1/a.png").readlink() == image
    assert same_objects(found.masks("day 1/a.png", "object"), MASKS)
    convert(capsys, tmp_path / "copied", *arguments, "--copy")
    copied = tmp_path / "copied/images/day 1/a.png"
    assert not copied.is_symlink()
    assert copied.read_bytes() == image.read_bytes()


def test_refused_label_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_image(tmp_path / "data/images/a.png")
    file = tmp_path / "data/masks/a.tif"

    def problem(values: np.ndarray, path: Path = file) -> str:
        save_labels(path, values)
        message = refused(capsys, tmp_path / "out", tmp_path / "data")
        for left in sorted((tmp_path / "out").rglob("*"), reverse=True):
            left.unlink() if left.is_file() else left.rmdir()
        path.unlink()
        assert message.startswith(str(path)) or path.name in message
        return message

    assert "negative value -1" in problem(VALUES.astype(np.int16) - 1)
    assert "fractional" in problem(VALUES + 0.5)
    assert "fractional" in problem(np.where(VALUES, VALUES, np.nan))
    assert "pages" in problem(np.stack([VALUES.astype(np.uint16)] * 2))
    assert "has 70 × 60" in problem(VALUES[:, :70].astype(np.uint16))
    colored = np.stack([VALUES, VALUES, VALUES * 2], 2).astype(np.uint8)
    assert "expected one value per pixel" in problem(colored, file.with_suffix(".png"))
    pickled = file.with_suffix(".npy")
    assert "could run code" in problem(np.array({"masks": VALUES}), pickled)
    np.save(tmp_path / "data/images/a_seg.npy", np.array({"masks": VALUES}), allow_pickle=True)
    file.parent.rmdir()
    (tmp_path / "data/images").rename(tmp_path / "data/flat")
    assert "_seg.npy files hold pickled" in refused(capsys, tmp_path / "out", "labels", tmp_path / "data/flat")


@pytest.mark.parametrize(
    ("label", "images"), [("a.tif", ("a.jpg", "a.tif")), ("a_img.png", ("a.png", "a_img.png"))]
)
def test_two_images_of_one_label_image_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str, images: tuple[str, str]
) -> None:
    for name in images:
        draw_image(tmp_path / "data/images" / name)
    save_labels(tmp_path / "data/masks" / label, VALUES.astype(np.uint8))
    message = refused(capsys, tmp_path / "out", tmp_path / "data")
    assert all(str(tmp_path / "data/images" / name) in message for name in images)
    assert "both belong to one label image; keep one" in message


def test_names_that_no_data_set_can_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"M\xfcller.png")  # from an old archive
    draw_image(tmp_path / "data/images" / name)
    save_labels(tmp_path / "data/masks" / name, VALUES.astype(np.uint8))
    assert r"'M\udcfcller.png' is not UTF-8; rename it" in refused(capsys, tmp_path / "out", tmp_path / "data")
    assert not (tmp_path / "out").exists()


def test_binary_masks_of_the_data_science_bowl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("00ae", "f1"):
        draw_image(tmp_path / f"stage1_train/{name}/images/{name}.png")
        for n, mask in enumerate(MASKS):
            save_labels(tmp_path / f"stage1_train/{name}/masks/{n}.png", mask.astype(np.uint8) * 255)
    # An overlap of 5 columns, which the smaller object keeps.
    wider = draw_mask("rectangle", 20, 5, 50, 20)
    save_labels(tmp_path / "stage1_train/f1/masks/1.png", wider.astype(np.uint8) * 255)
    found = convert(capsys, tmp_path / "out", tmp_path / "stage1_train", "--class", "nucleus")
    assert same_objects(found.masks("00ae.png", "nucleus"), MASKS)
    smaller, larger = sorted([MASKS[0], wider], key=np.count_nonzero)
    assert same_objects(found.masks("f1.png", "nucleus"), [smaller, larger & ~smaller, MASKS[2]])
    assert found.counts["lost"] == np.count_nonzero(MASKS[0] & wider) > 0
    assert found.counts["annotated"] == 2 * sum(map(np.count_nonzero, MASKS)) + int(wider.sum() - MASKS[1].sum())
    assert (found.counts["covered"], found.counts["hidden"]) == (1, 0)


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_round_trip_of_nuclei(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_dir: Path, kind: str
) -> None:
    root = shared_dir / "data/nuclei"
    content = json.loads((root / "panoptic_val.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    truth = {}
    for annotation in content["annotations"][::16]:
        name = names[annotation["image_id"]]
        rgb = np.asarray(Image.open(root / "panoptic_val" / annotation["file_name"])).astype(np.int64)
        ids = rgb @ [1, 256, 65536]
        nuclei = [s["id"] for s in annotation["segments_info"] if s["category_id"] == 1]
        truth[name] = [ids == number for number in nuclei]
        data, stem = tmp_path / "data", Path(name).stem
        image = data / ("images" if kind == "labels" else f"{stem}/images") / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.symlink_to(root / "images/val" / name)
        if kind == "labels":
            save_labels(data / f"masks/{stem}.tif", np.where(np.isin(ids, nuclei), ids, 0).astype(np.uint32))
        for n, mask in enumerate(truth[name] if kind == "masks" else []):
            save_labels(data / f"{stem}/masks/{n}.png", mask.astype(np.uint8) * 255)
    found = convert(capsys, tmp_path / "out", tmp_path / "data", "--class", "nucleus")
    assert len(truth) > 5
    for name, masks in truth.items():
        assert same_objects(found.masks(name, "nucleus"), masks)
    assert found.counts["objects"] == sum(map(len, truth.values()))
    assert found.counts["lost"] == found.counts["void"] == 0


def test_resuming_notices_new_images_and_changed_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for name in "bcd":
        draw_image(data / f"images/{name}.png")
        save_labels(data / f"masks/{name}.png", VALUES.astype(np.uint8))
    whole = (data / "masks/d.png").read_bytes()
    (data / "masks/d.png").write_bytes(whole[: len(whole) // 2])
    assert "d.png" in refused(capsys, out, data)
    (data / "masks/d.png").write_bytes(whole)
    draw_image(data / "images/a.png")
    save_labels(data / "masks/a.png", VALUES.astype(np.uint8))
    save_labels(data / "masks/b.png", np.where(VALUES == 7, 7, 0).astype(np.uint8))
    kept = (out / "segments/c.png").stat().st_mtime_ns
    found = convert(capsys, out, data, "--resume")
    assert [(i["id"], i["file_name"]) for i in found.content["images"]] == [
        (n, f"{name}.png") for n, name in enumerate("abcd", 1)
    ]
    assert found.content == convert(capsys, tmp_path / "whole", data).content
    assert (out / "segments/c.png").stat().st_mtime_ns == kept
    assert (out / "segments/b.png").read_bytes() == (tmp_path / "whole/segments/b.png").read_bytes()


def test_resuming_gives_the_same_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        draw_image(tmp_path / f"data/images/{name}.png")
        save_labels(tmp_path / f"data/masks/{name}.png", VALUES.astype(np.uint8))
    expected = convert(capsys, tmp_path / "whole", tmp_path / "data")
    (tmp_path / "data/masks/b.png").write_bytes(b"broken")
    assert "b.png" in refused(capsys, tmp_path / "out", tmp_path / "data")
    save_labels(tmp_path / "data/masks/b.png", VALUES.astype(np.uint8))
    assert "is not an empty folder" in refused(capsys, tmp_path / "out", tmp_path / "data")
    assert "overlap" in refused(capsys, tmp_path / "out", tmp_path / "data", "--resume", "--overlap", "error")
    first = (tmp_path / "out/segments/a.png").stat().st_mtime_ns
    assert convert(capsys, tmp_path / "out", tmp_path / "data", "--resume").content == expected.content
    assert (tmp_path / "out/segments/a.png").stat().st_mtime_ns == first
    assert main(["import", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--resume"]) == 1
    with full_disk():
        assert "No space" in (text := refused(capsys, tmp_path / "full", tmp_path / "data")) or "too large" in text
    assert not (tmp_path / "full").exists()  # nothing was finished, so there is nothing to resume
    inner = tmp_path / "data/out"
    assert "choose a folder outside of it" in refused(capsys, inner, tmp_path / "data")
