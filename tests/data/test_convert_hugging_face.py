"""Tests of `refine import` for data sets of Hugging Face: Parquet, Arrow and image folders."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.converted import SIZE, convert, refused, same_objects
from helpers.published import FIELD, ONE, TWO
from PIL import Image


def encoded(values: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def rows(colored: bool = True) -> list[dict[str, Any]]:
    ids = np.select([ONE, TWO, FIELD], [7, 70_000 if colored else 200, 9])
    label = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2) if colored else ids
    label = label.astype(np.uint8)
    segments = [
        {"id": 7, "category_id": 0, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]},
        {"id": int(ids.max()), "category_id": 0, "iscrowd": 1, "area": 1, "bbox": [0, 0, 1, 1]},
        {"id": 9, "category_id": 4, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]},
    ]
    photos = np.random.default_rng(0).integers(0, 255, (3, *SIZE, 3), dtype=np.uint8)
    return [
        {
            "image": {"bytes": encoded(photo, "JPEG"), "path": path},
            "label": {"bytes": encoded(label, "PNG"), "path": None},
            "segments_info": segments,
        }
        for photo, path in zip(photos, ("x/street.jpg", None, "x/street.jpg"), strict=True)
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    table = pa.Table.from_pylist(rows(kind == "parquet"))
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "parquet":
        pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=2)
        pq.write_table(table, folder / "test-00000-of-00001.parquet")
    else:
        (folder / "train").mkdir()
        path = str(folder / "train/data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "person", "4": "grass", "5": "sky"}))
    split = ["--split", "train"] if kind == "parquet" else []
    found = convert(capsys, tmp_path / "out", folder, *split, "--stuff", "grass", "sky")
    assert found.categories == {"person": (1, 1), "grass": (2, 0), "sky": (3, 0)}
    assert list(found.maps) == ["street.jpg", "train_000001.jpg", "train_000002.jpg"]
    for row, name in enumerate(found.maps):
        assert same_objects(found.masks(name, "person"), [ONE, TWO])
        assert same_objects(found.masks(name, "grass"), [FIELD])
        assert sorted(s["iscrowd"] for s in found.segments(name)) == [0, 0, 1]
        assert (tmp_path / "out/images" / name).read_bytes() == table["image"][row].as_py()["bytes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["image"].update(bytes=None), "row 0: image is {"),
        (lambda r: r["label"].update(bytes=r["image"]["bytes"]), "row 0: label: is JPEG, which changes labels"),
        (lambda r: r["segments_info"][0].update(category_id=3), "row 0: category_id 3 is not in id2label.json"),
        (lambda r: r["segments_info"][0].update(id=None), "row 0: segments_info is"),
        (lambda r: r.pop("segments_info"), "expected columns image, segments_info"),
    ],
)
def test_invalid_hugging_face(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], object], message: str
) -> None:
    row = rows()[0]
    change(row)
    (tmp_path / "hf").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "hf/train.parquet")
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "person", "4": "grass"}))
    assert message in refused(capsys, tmp_path / "out", "huggingface", tmp_path / "hf")


def image_folder(folder: Path, change: Callable[[dict], object] = lambda entry: None) -> None:
    (folder / "train/label").mkdir(parents=True)
    lines = []
    for n, row in enumerate(rows()):
        for field, name in (("image", f"{n}.jpg"), ("label", f"label/{n}.png")):
            (folder / "train" / name).write_bytes(row[field]["bytes"])
        lines.append({"file_name": f"{n}.jpg", "label_file_name": f"label/{n}.png"})
        lines[-1]["segments_info"] = json.loads(json.dumps(row["segments_info"]))
    change(lines[1])
    (folder / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "id2label.json").write_text(json.dumps({"0": "person", "4": "grass"}))


def test_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(tmp_path / "hf")
    found = convert(capsys, tmp_path / "out", tmp_path / "hf", "--stuff", "grass")
    assert found.categories == {"person": (1, 1), "grass": (2, 0)}
    assert list(found.maps) == ["0.jpg", "1.jpg", "2.jpg"]
    for name in found.maps:
        assert same_objects(found.masks(name, "person"), [ONE, TWO])
        assert same_objects(found.masks(name, "grass"), [FIELD])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("label_file_name"), "expected one of label_file_name, annotation_file_name"),
        (lambda e: e.update(label_file_name="../../x.png"), "leads out of"),
        (lambda e: e.update(file_name="none.jpg"), "none.jpg is missing"),
        (lambda e: e.update(segments_info=[{"id": 7}]), "segments_info is [{"),
        (lambda e: e["segments_info"][0].update(category_id=3), "category_id 3 is not in id2label.json"),
    ],
)
def test_invalid_image_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], object], message: str
) -> None:
    image_folder(tmp_path / "hf", change)
    error = refused(capsys, tmp_path / "out", "imagefolder", tmp_path / "hf")
    assert f"{tmp_path / 'hf/train/metadata.jsonl'}:2" in error
    assert message in error
