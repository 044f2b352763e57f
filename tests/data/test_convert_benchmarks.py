"""Tests of `refine import` for published data sets: files in their documented layouts, written by hand."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.converted import SIZE, convert, draw_image, draw_mask, refused, same_objects
from PIL import Image

ONE, TWO = draw_mask("ellipse", 5, 5, 25, 30), draw_mask("rectangle", 26, 5, 50, 20)
THREE, FIELD = draw_mask("ellipse", 40, 30, 70, 55), draw_mask("rectangle", 0, 50, 30, 59)
VOID = draw_mask("rectangle", 72, 0, 79, 59)


def save(path: Path, values: np.ndarray, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = Image.fromarray(values, "P")
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)
    return path


def voc(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    draw_image(folder / "JPEGImages/2007_1.jpg")
    draw_image(folder / "JPEGImages/2007_2.jpg")
    objects = np.select([ONE, TWO, THREE, VOID], [1, 2, 3, 255]).astype(np.uint8)
    classes = np.select([ONE, TWO, THREE, VOID], [15, 15, 8, 255]).astype(np.uint8)
    for name in ("2007_1", "2007_2"):
        save(folder / f"SegmentationObject/{name}.png", objects, palette=True)
        save(folder / f"SegmentationClass/{name}.png", classes, palette=True)
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "trainval.txt").write_text("2007_1\n2007_2\n")
    return objects, classes


def test_voc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, classes = voc(tmp_path / "VOC2012")
    found = convert(capsys, tmp_path / "out", tmp_path / "VOC2012", "--split", "train")
    assert len(found.categories) == 21
    assert (found.categories["person"], found.categories["cat"]) == ((15, 1), (8, 1))
    assert found.categories["background"] == (21, 0)
    assert same_objects(found.masks("2007_1.jpg", "person"), [ONE, TWO])
    assert same_objects(found.masks("2007_1.jpg", "cat"), [THREE])
    assert same_objects(found.masks("2007_1.jpg", "background"), [classes == 0])
    assert ((found.maps["2007_1.jpg"] == 0) == VOID).all()
    both = convert(capsys, tmp_path / "both", tmp_path / "VOC2012", "--split", "trainval", "--background", "void")
    assert len(both.maps) == 2
    assert "has the splits train, trainval" in refused(capsys, tmp_path / "x", tmp_path / "VOC2012")


def test_voc_objects_of_two_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "voc"
    objects, classes = voc(folder)
    save(folder / "SegmentationObject/2007_1.png", np.where(TWO, 1, objects), palette=True)
    save(folder / "SegmentationClass/2007_1.png", np.where(TWO, 12, classes).astype(np.uint8), palette=True)
    arguments = ("voc", folder, "--split", "train")
    assert "object 1 is dog and person in" in refused(capsys, tmp_path / "out", *arguments)
    save(folder / "SegmentationClass/2007_1.png", np.where(TWO, 77, classes).astype(np.uint8), palette=True)
    assert "value 77 is no class" in refused(capsys, tmp_path / "out", *arguments)


def test_voc_with_the_label_map_of_cvat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "voc"
    voc(folder)
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[ONE | TWO], colors[FIELD] = (10, 200, 30), (0, 0, 90)
    objects = np.zeros((*SIZE, 3), np.uint8)
    objects[ONE], objects[TWO], objects[FIELD] = (128, 0, 0), (0, 128, 0), (128, 128, 0)
    save(folder / "SegmentationClass/2007_1.png", colors)
    save(folder / "SegmentationObject/2007_1.png", objects)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cell:10,200,30::", "grass:0,0,90::"]
    (folder / "labelmap.txt").write_text("\n".join(lines))
    found = convert(capsys, tmp_path / "out", "voc", folder, "--split", "train", "--stuff", "grass")
    assert found.categories == {"cell": (1, 1), "grass": (2, 0), "background": (3, 0)}
    assert same_objects(found.masks("2007_1.jpg", "cell"), [ONE, TWO])
    assert same_objects(found.masks("2007_1.jpg", "grass"), [FIELD])
    assert same_objects(found.masks("2007_1.jpg", "background"), [~(ONE | TWO | FIELD)])


def test_cityscapes(tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_dir: Path) -> None:
    root = shared_dir / "data/cityscapes_sample"
    found = convert(capsys, tmp_path / "out", root, "--split", "val")
    assert len(found.maps) == 2
    assert len(found.categories) == 19
    assert found.categories["car"] == (26, 1)
    for name, ids in found.maps.items():
        stem = name.removesuffix("_leftImg8bit.png")
        values = np.asarray(Image.open(root / f"gtFine/val/{stem}_gtFine_instanceIds.png")).astype(np.int64)
        labels = np.where(values < 1000, values, values // 1000)
        known = np.isin(labels, [number for number, _ in found.categories.values()])
        assert ((ids > 0) == known).all()
        pairs = np.stack(np.divmod(np.unique(ids[known] << 16 | values[known]), 1 << 16))
        assert len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1])) == len(found.segments(name))
        category = {s["id"]: s["category_id"] for s in found.segments(name)}
        crowd = {s["id"]: s["iscrowd"] for s in found.segments(name)}
        for segment, value in pairs.T.tolist():
            assert category[segment] == (value if value < 1000 else value // 1000)
            assert crowd[segment] == (24 <= value < 34)
    assert found.counts["lost"] == found.counts["gained"] == 0


def test_mapillary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "vistas"
    root.mkdir()
    labels = [
        {"name": "object--car", "readable": "Car", "instances": True, "evaluate": True, "color": [0, 0, 142]},
        {"name": "nature--sky", "readable": "Sky", "instances": False, "evaluate": True, "color": [70, 130, 180]},
        {"name": "void--unlabeled", "readable": "Unlabeled", "instances": False, "evaluate": False},
    ]
    (root / "config_v1.2.json").write_text(json.dumps({"labels": labels[::-1]}))
    (root / "config_v2.0.json").write_text(json.dumps({"labels": labels}))
    draw_image(root / "training/images/a.jpg")
    draw_image(root / "validation/images/b.jpg")
    values = np.select([ONE, TWO, VOID], [0, 1, 512], 256).astype(np.uint16)
    for folder in ("training", "validation"):
        for version in ("v1.2", "v2.0"):
            save(root / folder / version / f"instances/{'ab'[folder > 'u']}.png", values)
    found = convert(capsys, tmp_path / "out", root, "--split", "training")
    assert found.categories == {"Car": (1, 1), "Sky": (2, 0)}
    assert same_objects(found.masks("a.jpg", "Car"), [ONE, TWO])
    assert same_objects(found.masks("a.jpg", "Sky"), [~(ONE | TWO | VOID)])
    assert ((found.maps["a.jpg"] == 0) == VOID).all()
    save(root / "training/v2.0/instances/a.png", values + 256)
    message = refused(capsys, tmp_path / "x", "mapillary", root, "--split", "training")
    assert "label 3 is not in the config" in message


def ade20k(folder: Path, change: Callable[[dict], object] = lambda content: None) -> None:
    # Class 1234 = 256 · 4 + 210 is stored in red as 40, class 3 in green.
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[ONE], colors[TWO], colors[FIELD] = (40, 210, 7), (40, 210, 9), (0, 3, 200)
    for name in ("training", "validation"):
        image = draw_image(folder / f"images/ADE/{name}/urban/street/ADE_train_1.jpg")
        save(image.with_name("ADE_train_1_seg.png"), colors)
        save(image.with_name("ADE_train_1_parts_1.png"), colors)
        objects = [
            {"id": 0, "name": "person, individual", "name_ndx": 1234, "parts": {"part_level": 0}},
            {"id": 1, "name": "person, individual", "name_ndx": 1234, "parts": {"part_level": 0}},
            {"id": 2, "name": "grass", "name_ndx": 3, "parts": {"part_level": 0}},
            {"id": 3, "name": "head", "name_ndx": 1300, "parts": {"part_level": 1}},
        ]
        content = {"annotation": {"filename": "ADE_train_1.jpg", "object": objects}}
        change(content)
        image.with_suffix(".json").write_text(json.dumps(content))


def test_ade20k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ade20k(tmp_path / "ade")
    found = convert(capsys, tmp_path / "out", tmp_path / "ade", "--split", "training", "--stuff", "grass")
    name = "urban/street/ADE_train_1.jpg"
    assert found.categories == {"person, individual": (1234, 1), "grass": (3, 0)}
    assert same_objects(found.masks(name, "person, individual"), [ONE, TWO])
    assert same_objects(found.masks(name, "grass"), [FIELD])
    assert found.counts["void"] == np.count_nonzero(~(ONE | TWO | FIELD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotation"]["object"].pop(2), "class 3 is in no JSON"),
        (lambda c: c["annotation"]["object"][1].update(name="man"), "name_ndx 1234 is man and person"),
        (lambda c: c["annotation"]["object"][1].pop("parts"), "annotation.object[1]: got"),
        (lambda c: c.pop("annotation"), "expected annotation.object"),
    ],
)
def test_invalid_ade20k(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], object], message: str
) -> None:
    ade20k(tmp_path / "ade", change)
    assert message in refused(capsys, tmp_path / "out", "ade20k", tmp_path / "ade", "--split", "training")


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


def ade_challenge(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two persons (class 13, thing 4) and a bed without an instance (class 8) on grass (class 10)."""
    semantic = np.select([ONE | TWO, THREE, FIELD], [13, 8, 10]).astype(np.uint8)
    instances = np.zeros((*SIZE, 3), np.uint8)
    instances[ONE], instances[TWO] = (4, 1, 90), (4, 2, 90)
    instances[51:53, :10] = (1, 3, 0)  # a bed in front of grass
    for split in ("training", "validation"):
        draw_image(folder / f"images/{split}/ADE_{split}_1.jpg")
        save(folder / f"annotations/{split}/ADE_{split}_1.png", semantic)
        save(folder / f"annotations_instance/{split}/ADE_{split}_1.png", instances)
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return semantic, instances


def test_ade_challenge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, instances = ade_challenge(tmp_path / "ade")
    found = convert(capsys, tmp_path / "out", tmp_path / "ade", "--split", "training")
    assert len(found.categories) == 150
    assert sum(isthing for _, isthing in found.categories.values()) == 100
    assert [found.categories[name] for name in ("wall", "person", "flag")] == [(1, 0), (13, 1), (150, 1)]
    name = "ADE_training_1.jpg"
    bed = instances[..., 1] == 3
    assert same_objects(found.masks(name, "person"), [ONE, TWO])
    assert same_objects(found.masks(name, "bed"), [bed])
    assert same_objects(found.masks(name, "grass"), [FIELD & ~bed])
    assert ((found.maps[name] == 0) == ~(ONE | TWO | FIELD)).all()


@pytest.mark.parametrize(
    ("colour", "message"),
    [((5, 1, 0), "instance 1 has two classes"), ((101, 9, 0), "red is 101 for instance 9; expected 1 to 100")],
)
def test_invalid_ade_challenge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], colour: tuple[int, int, int], message: str
) -> None:
    _, instances = ade_challenge(tmp_path / "ade")
    instances[0, 0] = colour
    file = save(tmp_path / "ade/annotations_instance/training/ADE_training_1.png", instances)
    assert f"{file}: {message}" in refused(capsys, tmp_path / "out", tmp_path / "ade", "--split", "training")
    (tmp_path / "ade/annotations/validation/ADE_validation_1.png").unlink()
    assert "no such file, but" in refused(capsys, tmp_path / "x", tmp_path / "ade", "--split", "validation")
    (tmp_path / "ade/annotations").rename(tmp_path / "ade/elsewhere")
    assert "ADEChallengeData2016 needs it" in refused(capsys, tmp_path / "x", tmp_path / "ade")


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
