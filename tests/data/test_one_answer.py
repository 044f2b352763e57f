"""Tests that training, `check-data` and `evaluate` accept and reject the same files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn_data import IDS, Files, write_coco
from PIL import Image

from refine.data.check.dataset import check_dataset
from refine.data.coco_panoptic import CocoPanoptic
from refine.errors import RefineError
from refine.evaluation.panoptic_files import evaluate_files
from refine.structures import id_to_rgb


def _segments(**fields: object) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        for info in files.content["annotations"][0]["segments_info"]:
            info.update(fields)

    return change


def _save(mode: str) -> Callable[[Files], None]:
    rgb = id_to_rgb(IDS)

    def change(files: Files) -> None:
        path = files.segments / "0_ids.png"
        if mode == "RGBA":
            Image.fromarray(np.dstack([rgb, np.zeros(IDS.shape, np.uint8)])).save(path)
        elif mode == "P":
            Image.fromarray(rgb).quantize(8, dither=Image.Dither.NONE).save(path)
        elif mode == "I;16":
            Image.fromarray(IDS.astype(np.uint16)).save(path)
        else:
            Image.fromarray(rgb).convert(mode).save(path)

    return change


def _append(files: Files) -> None:
    with (files.segments / "0_ids.png").open("ab") as file:
        file.write(b"\0")


def _float_areas(files: Files) -> None:
    for info in files.content["annotations"][0]["segments_info"]:
        info["area"] = float(info["area"])


ACCEPTED: dict[str, Callable[[Files], None]] = {
    "unchanged": lambda files: None,
    "float areas": _float_areas,
    "no areas": _segments(area=None),
    "crowd 0.0": _segments(iscrowd=0.0),
    "crowd false": _segments(iscrowd=False),
    "alpha": _save("RGBA"),
    "palette": _save("P"),
    "bytes after the end": _append,
    "supercategory null": lambda files: files.content["categories"][0].update(supercategory=None),
}
REJECTED: dict[str, Callable[[Files], None]] = {
    "crowd 2": _segments(iscrowd=2),
    "crowd text": _segments(iscrowd="0"),
    "crowd null": _segments(iscrowd=None),
    "area text": _segments(area="4"),
    "grey": _save("L"),
    "grey with alpha": _save("LA"),
    "16 bits": _save("I;16"),
    "size": lambda files: files.content["images"][0].update(height=6, width=4),
    "device": lambda files: files.content["annotations"][0].update(file_name="/dev/zero"),
    "path outside": lambda files: files.content["annotations"][0].update(file_name="../segments/0_ids.png"),
}


@pytest.mark.parametrize("change", [*ACCEPTED, *REJECTED])
def test_all_readers_agree(tmp_path: Path, change: str) -> None:
    files, truth = write_coco(tmp_path / "changed"), write_coco(tmp_path / "truth")
    (ACCEPTED | REJECTED)[change](files)
    files.save()
    accepted = {"check-data": check_dataset(files.images, files.json, files.segments, threads=1).ok}
    for name, read in (
        ("train", lambda: CocoPanoptic(files.images, files.json, files.segments)[0][1].iscrowd.any()),
        ("gt", lambda: evaluate_files(files.json, files.segments, truth.json, truth.segments).pq - 1),
        ("pred", lambda: evaluate_files(truth.json, truth.segments, files.json, files.segments).pq - 1),
    ):
        try:
            accepted[name] = float(read()) == 0
        except RefineError:
            accepted[name] = False
    if change == "size":
        accepted["pred"] = False  # the size of a prediction is that of its PNG
    assert set(accepted.values()) == {change in ACCEPTED}, accepted
