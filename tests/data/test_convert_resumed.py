"""A resumed `refine import` converts an image again if any file of its annotation has changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.converted import convert, refused
from helpers.published import save
from PIL import Image

from tests.data.test_convert_ade20k import ade_challenge
from tests.data.test_convert_hugging_face import image_folder
from tests.data.test_convert_voc import voc


def two_images_of_ade(folder: Path) -> None:
    ade_challenge(folder)
    for file in [*folder.glob("*/training/*")]:
        shutil.copy(file, file.with_stem("ADE_training_2"))


def relabel(value: int, other: int, palette: bool) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        values = np.asarray(Image.open(file))
        save(file, np.where(values == value, other, values).astype(np.uint8), palette=palette)

    return change


def rename_in_metadata(file: Path) -> None:
    first, rest = file.read_text().split("\n", 1)
    file.write_text(first.replace('"category_id": 4', '"category_id": 0') + "\n" + rest)


@pytest.mark.parametrize(
    ("kind", "build", "options", "last_image", "annotation", "change"),
    [
        (
            *("voc", voc, ["--split", "trainval"], "JPEGImages/2007_2.jpg"),
            *("SegmentationClass/2007_1.png", relabel(8, 12, True)),
        ),
        (
            *("adechallenge", two_images_of_ade, ["--split", "training"], "images/training/ADE_training_2.jpg"),
            *("annotations/training/ADE_training_1.png", relabel(10, 5, False)),
        ),
        ("imagefolder", image_folder, [], "train/2.jpg", "train/metadata.jsonl", rename_in_metadata),
    ],
)
def test_changed_files_are_noticed(tmp_path, capsys, kind, build, options, last_image, annotation, change):
    data, out = tmp_path / "data", tmp_path / "out"
    build(data)
    whole = (data / last_image).read_bytes()
    (data / last_image).write_bytes(b"?")
    refused(capsys, out, kind, data, *options)
    (data / last_image).write_bytes(whole)
    change(data / annotation)
    resumed = convert(capsys, out, kind, data, *options, "--resume")
    afresh = convert(capsys, tmp_path / "afresh", kind, data, *options)
    assert resumed.content == afresh.content
