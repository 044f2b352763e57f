"""Files of results, read back by the software that they are for, or by a reader written from its documentation."""

import base64
import csv
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
import tifffile
import torch
from helpers.results import CATEGORIES, HEIGHT, WIDTH, make_result
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from refine.errors import RefineError
from refine.formats.results.saver import ImageResult
from refine.savers import SAVERS, encode, find_savers
from refine.structures import PanopticResult, Segment


@pytest.fixture
def item() -> ImageResult:
    pixels = np.random.default_rng(1).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    return ImageResult(make_result(), "a b/c.x.png", torch.from_numpy(pixels), 0.5, "nuclei")


def written(name: str, item: ImageResult) -> dict[str, bytes]:
    return dict(encode([SAVERS[name]], item))


def joined(name: str, *items: ImageResult) -> bytes:
    """Return the file that joins the parts of images with ids 11, 12, …"""
    saver, parts = SAVERS[name], []
    for n, item in enumerate(items):
        image = {"id": 11 + n, "file_name": item.file_name, "height": HEIGHT, "width": WIDTH}
        parts.append((image, json.loads(*written(name, item).values())))
    return b"".join(saver.join(parts, CATEGORIES))


def assert_masks(masks: dict[int, np.ndarray], item: ImageResult, numbers: list[int]) -> None:
    assert sorted(masks) == numbers
    for number, mask in masks.items():
        assert np.array_equal(mask, item.ids == number), number


@pytest.mark.parametrize("offset", [0, 70_000])
def test_label_images(offset, item):
    item = ImageResult(make_result(offset), item.file_name, mpp=0.25)
    files = written("labels", item)
    assert list(files) == ["labels/a b/c.x.tif", "classes/a b/c.x.tif"]
    objects, classes = (tifffile.TiffFile(io.BytesIO(data)) for data in files.values())
    values = objects.asarray()
    assert values.dtype == (np.uint32 if offset else np.uint16)
    assert np.array_equal(values, np.where(item.ids == 5 + offset, 0, item.ids))
    assert objects.pages[0].get_resolution("micrometer") == (4, 4)
    names = json.loads(classes.pages[0].description)["classes"]
    assert names == {"1": "debris", "2": "cell <a>", "3": "ground"}
    expected = np.zeros_like(item.ids)
    for segment in item.result.segments:
        expected[item.ids == segment.id] = CATEGORIES.index(segment.category_id) + 1
    assert np.array_equal(classes.asarray(), expected)
    assert classes.asarray().dtype == np.uint8
    with Image.open(io.BytesIO(files["labels/a b/c.x.tif"])) as image:
        assert np.array_equal(np.asarray(image), values)


def test_geojson_polygons_fill_to_the_same_pixels(item):
    (data,) = written("geojson", item).values()
    collection = json.loads(data)
    y, x = np.indices(item.ids.shape) + 0.5
    masks = {}
    for feature, segment in zip(collection["features"], item.result.segments, strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        masks[segment.id] = shapely.contains_xy(shape, x, y)
        properties = feature["properties"]
        assert properties["objectType"] == ("detection" if segment.isthing else "annotation")
        category = CATEGORIES[CATEGORIES.index(segment.category_id)]
        assert properties["classification"] == {"name": category.name, "color": list(category.color)}
        assert properties["measurements"].get("score") == segment.score
        assert properties["measurements"]["segment id"] == segment.id
        assert shape.area == segment.area
    assert_masks(masks, item, [1, 2, 3, 4, 5])
    kinds = [feature["geometry"]["type"] for feature in collection["features"]]
    assert kinds[1:4] == ["MultiPolygon", "MultiPolygon", "Polygon"]


def test_coco_instances(item, tmp_path, capsys):
    other = ImageResult(make_result(), "d.png")
    (tmp_path / "fiftyone.json").write_bytes(joined("fiftyone", item, other))
    (tmp_path / "instances.json").write_bytes(joined("instances", item, other))
    truth = COCO(str(tmp_path / "fiftyone.json"))  # the layout that FiftyOne's COCODetectionDataset reads
    assert {i["id"]: i["file_name"] for i in truth.loadImgs(truth.getImgIds())} == {11: "a b/c.x.png", 12: "d.png"}
    assert sorted(truth.getAnnIds()) == [*range(1, 9)]
    assert {c["id"]: c["name"] for c in truth.loadCats(truth.getCatIds())} == {0: "debris", 7: "cell <a>"}
    results = truth.loadRes(str(tmp_path / "instances.json"))
    for source in (truth, results):
        for image in (11, 12):
            annotations = source.loadAnns(source.getAnnIds(image))
            masks = {n: source.annToMask(a).astype(bool) for n, a in enumerate(annotations, 1)}
            assert_masks(masks, item, [1, 2, 3, 4])
            assert [a["score"] for a in annotations] == [0.9, 0.8, 0.75, 1.0]
            assert [a["category_id"] for a in annotations] == [7, 0, 7, 7]
            for annotation in annotations:
                assert coco_mask.toBbox(annotation["segmentation"]).tolist() == list(annotation["bbox"])
                assert coco_mask.area(annotation["segmentation"]) == annotation["area"]


def test_cutouts(item):
    files = written("cutouts", item)
    assert list(files) == [f"cutouts/a b/c.x/{n}.png" for n in (1, 2, 3, 4)]
    for data, segment in zip(files.values(), item.things, strict=True):
        x, y, width, height = segment.bbox
        rgba = np.asarray(Image.open(io.BytesIO(data)))
        assert rgba.shape == (height, width, 4)
        assert np.array_equal(rgba[..., 3], 255 * (item.ids[y : y + height, x : x + width] == segment.id))
        assert np.array_equal(rgba[..., :3], item.pixels[y : y + height, x : x + width])


def test_labelme_masks(item):
    (data,) = written("labelme", item).values()
    content = json.loads(data)
    assert (content["imagePath"], content["imageData"]) == ("c.x.png", None)
    assert (content["imageHeight"], content["imageWidth"]) == item.ids.shape
    masks = {}
    for shape in content["shapes"]:  # as labelme's utils.shapes_to_label does
        assert shape["shape_type"] == "mask"
        (x1, y1), (x2, y2) = np.array(shape["points"]).astype(int)
        mask = masks[shape["group_id"]] = np.zeros(item.ids.shape, bool)
        small = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
        mask[y1 : y2 + 1, x1 : x2 + 1] = small
        assert shape["label"] == item.result.name(item.result.segment(shape["group_id"]))
    assert_masks(masks, item, [1, 2, 3, 4, 5])


def test_cvat_masks(item):
    root = ElementTree.fromstring(joined("cvat", item, ImageResult(make_result(), "d.png")))
    assert [label.findtext("name") for label in root.iter("label")] == ["debris", "cell <a>", "ground"]
    assert root.findtext("version") == "1.1"
    assert [image.get("name") for image in root.iter("image")] == ["a b/c.x.png", "d.png"]
    for image in root.iter("image"):
        masks = {}
        for number, element in enumerate(image, 1):  # as cvat/apps/dataset_manager/formats/cvat.py does
            left, top, width, height = (int(element.get(k)) for k in ("left", "top", "width", "height"))
            counts = list(map(int, element.get("rle").split(",")))
            values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
            masks[number] = np.zeros(item.ids.shape, bool)
            masks[number][top : top + height, left : left + width] = values.reshape(height, width)
            assert element.get("label") == item.result.name(item.result.segment(number))
        assert_masks(masks, item, [1, 2, 3, 4, 5])


def test_cvat_reads_names_with_control_characters(item):
    root = ElementTree.fromstring(joined("cvat", ImageResult(make_result(), "a\x01\tb.png")))
    assert [image.get("name") for image in root.iter("image")] == ["a\ufffd\tb.png"]


def unpack(data: list[int]) -> np.ndarray:
    """Decode the runs of @thi.ng/rle-pack, bit by bit."""
    bits, position = "".join(f"{byte:08b}" for byte in data), 0

    def read(size: int) -> int:
        nonlocal position
        position += size
        return int(bits[position - size : position], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    return np.array(values)


def test_label_studio_brushes(item):
    first, second = json.loads(joined("labelstudio", item, ImageResult(make_result(), "d.png")))
    assert first["data"] == {"image": "/data/local-files/?d=a%20b/c.x.png"}
    (prediction,) = first["predictions"]
    assert prediction["model_version"] == "nuclei"
    assert second["data"]["image"].endswith("d=d.png")
    masks = {}
    for region in prediction["result"]:
        assert (region["original_height"], region["original_width"]) == item.ids.shape
        assert (region["type"], region["value"]["format"]) == ("brushlabels", "rle")
        rgba = unpack(region["value"]["rle"]).reshape(*item.ids.shape, 4)
        assert np.array_equal(rgba, np.repeat(rgba[..., 3:], 4, 2))
        assert set(np.unique(rgba)) == {0, 255}
        masks[int(region["id"])] = rgba[..., 3] > 0
        assert region["value"]["brushlabels"] == [item.result.name(item.result.segment(int(region["id"])))]
    assert_masks(masks, item, [1, 2, 3, 4, 5])


def test_label_studio_runs_are_longer_than_a_length_can_say():
    ids = torch.zeros(300, 400, dtype=torch.int32)
    ids[100:250] = 1
    result = PanopticResult(ids, [Segment(1, 7, True, 0.5, 60_000, (0, 100, 400, 150))], CATEGORIES)
    (task,) = json.loads(joined("labelstudio", ImageResult(result, "x.png")))
    rgba = unpack(task["predictions"][0]["result"][0]["value"]["rle"]).reshape(300, 400, 4)
    assert np.array_equal(rgba[..., 0] > 0, ids.numpy() > 0)


def test_table_of_objects(item):
    from skimage.measure import regionprops

    unscaled = ImageResult(make_result(), "d.png", item.image)
    rows = list(csv.DictReader(io.StringIO(joined("csv", item, unscaled).decode())))
    assert [(row["image"], row["id"]) for row in rows] == [
        (f, str(n)) for f in ("a b/c.x.png", "d.png") for n in range(1, 6)
    ]
    pixels = np.moveaxis(item.image.numpy(), 0, -1)
    for row, region in zip(rows, regionprops(item.ids, pixels), strict=False):
        segment = item.result.segment(region.label)
        assert row["class"] == item.result.name(segment)
        assert float(row["score"] or "nan") == pytest.approx(segment.score or np.nan, nan_ok=True)
        assert int(row["area"]) == region.num_pixels == segment.area
        assert [int(row[f"box_{k}"]) for k in ("x", "y", "width", "height")] == list(segment.bbox)
        y, x = np.nonzero(item.ids == region.label)
        assert float(row["x"]) == pytest.approx(x.mean() + 0.5)
        assert float(row["y_um"]) == pytest.approx(0.5 * (y.mean() + 0.5))
        for name in ("perimeter", "eccentricity", "solidity"):
            assert float(row[name]) == pytest.approx(getattr(region, name), rel=1e-8), name
        means = [float(row[f"mean_{c}"]) for c in (1, 2, 3)]
        assert means == pytest.approx(pixels[y, x].mean(0).tolist())
        assert float(row["area_um2"]) == pytest.approx(0.25 * segment.area)
        assert float(row["perimeter_um"]) == pytest.approx(0.5 * region.perimeter)
    assert rows[0] == rows[5] | {
        k: rows[0][k] for k in ("image", "um_per_px", "area_um2", "x_um", "y_um", "perimeter_um")
    }
    assert rows[5]["area_um2"] == ""


def test_supervision(item):
    detections = item.result.to_supervision()
    assert_masks(
        dict(zip(detections.data["segment_id"].tolist(), detections.mask, strict=True)), item, [1, 2, 3, 4]
    )
    assert detections.area.tolist() == [s.area for s in item.things]
    assert detections.box_area.tolist() == [s.bbox[2] * s.bbox[3] for s in item.things]
    assert detections.confidence.tolist() == pytest.approx([0.9, 0.8, 0.75, 1.0])
    assert detections.class_id.tolist() == [1, 0, 1, 1]
    assert detections["class_name"].tolist() == ["cell <a>", "debris", "cell <a>", "cell <a>"]
    assert len(detections[detections.confidence > 0.85]) == 2


def test_results_without_segments(item):
    empty = PanopticResult(torch.zeros(HEIGHT, WIDTH, dtype=torch.int32), [], CATEGORIES)
    nothing = ImageResult(empty, "e.png", item.image)
    for name, saver in SAVERS.items():
        files = written(name, nothing)
        assert list(files) == saver.paths("e.png", [])
        if saver.joint:
            assert joined(name, nothing)
    assert json.loads(joined("instances", nothing)) == json.loads(joined("labelstudio")) == []
    assert json.loads(joined("fiftyone", nothing))["annotations"] == []
    assert len(empty.to_supervision()) == 0


@pytest.mark.parametrize("name", ["overlay", "csv", "cutouts"])
def test_formats_that_draw_or_measure_need_an_image_of_the_same_size(name, item):
    for image in (None, item.image[:, 1:]):
        with pytest.raises(ValueError, match="image"):
            written(name, ImageResult(item.result, "c.png", image))


def test_wrong_names_and_missing_packages_are_reported(monkeypatch):
    with pytest.raises(RefineError, match=r"--save: unknown format 'tiff'; choose from coco, overlay, labels"):
        find_savers("coco,tiff")
    assert find_savers("coco, geojson,geojson") == [SAVERS["geojson"]]
    monkeypatch.setattr("refine.savers.find_spec", lambda name: None)
    with pytest.raises(RefineError, match=r"--save csv needs skimage; install .*\[measure\]"):
        find_savers("csv")
