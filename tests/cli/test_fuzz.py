"""Broken input of every kind, drawn by a seeded generator: the right result or one line, nothing half-written.

More draws than fit into the suite: REFINE_FUZZ_DRAWS=10 REFINE_FUZZ_SEED=1 pytest tests/cli/test_fuzz.py
"""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.attempts import Attempts
from helpers.drawn_data import write_coco
from helpers.mutations import ODD, break_bytes, break_json, break_value
from helpers.tiny_network import tiny_config
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.fusion.config import FusionConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories, rgb_to_id

FACTOR, SEED = int(os.environ.get("REFINE_FUZZ_DRAWS", "1")), int(os.environ.get("REFINE_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    categories = Categories.from_json(
        [{"id": 17, "name": "cat", "isthing": 1}, {"id": 105, "name": "grass", "isthing": 0}]
    )
    network = PanopticModel(tiny_config(1, {"max_detections": 5}), categories.num_things, len(categories)).eval()
    folder = tmp_path_factory.mktemp("model") / "tiny"
    fusion = FusionConfig(stuff_area=16, score_threshold=0.1)
    save_model(folder, SavedModel(network, categories, test_size=(32, 48), fusion=fusion))
    return folder


@pytest.fixture
def attempt(tmp_path, capsys):
    attempts = Attempts(tmp_path / "OUT", capsys)
    yield attempts
    assert not attempts.problems, "\n\n".join([f"{len(attempts.problems)} problems", *attempts.problems[:20]])


def draws(family: int, count: int) -> Iterator[tuple[int, Random]]:
    """Number and generator of each draw of a family."""
    for number in range(count * FACTOR):
        yield number, Random(f"{SEED}/{family}/{number}")


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def test_images(model, attempt, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    deep = pixels[..., 0].astype(np.uint16) * 200
    valid = [encoded(pixels, suffix) for suffix in (".png", ".jpg", ".tiff", ".bmp", ".webp", ".ppm")]
    valid += [encoded(deep, suffix) for suffix in (".png", ".tiff")]
    path, codes = tmp_path / "image.png", []
    for _, random in draws(1, 60):
        path.write_bytes(break_bytes(random.choice(valid), random))
        codes.append(attempt("predict", path, "-o", tmp_path / "OUT", "--checkpoint", model, "--device", "cpu"))
        if codes[-1] == 0:
            (entry,) = json.loads((tmp_path / "OUT" / "panoptic.json").read_text())["annotations"]
            ids = rgb_to_id(np.array(Image.open(tmp_path / "OUT" / "panoptic" / entry["file_name"])))
            assert {s["id"]: s["area"] for s in entry["segments_info"]} == {
                i: int((ids == i).sum()) for i in np.unique(ids).tolist() if i
            }
    assert 0 < codes.count(1) < len(codes)  # some of both


def test_data_sets(attempt, tmp_path):
    valid = write_coco(tmp_path / "valid")
    png = (valid.segments / "0_ids.png").read_bytes()
    broken = write_coco(tmp_path / "broken")
    codes = []
    for number, random in draws(2, 150):
        broken.json.write_bytes(break_json(valid.content, random) if number % 3 else valid.json.read_bytes())
        (broken.segments / "0_ids.png").write_bytes(png if number % 3 else break_bytes(png, random))
        data = ["--images", broken.images, "--json", broken.json, "--segments", broken.segments]
        good = attempt("check-data", *data)
        files = ["--pred", broken.json, "--pred-dir", broken.segments, "--out", tmp_path / "OUT" / "pq.json"]
        read = attempt("evaluate", "--gt", broken.json, "--gt-dir", broken.segments, *files)
        codes.append((good, read))
        if good == 0 and read != -1:
            assert read == 0, broken.json.read_text()
            assert json.loads((tmp_path / "OUT" / "pq.json").read_text())["All"]["pq"] == pytest.approx(1)
    assert {(0, 0), (1, 1)} <= set(codes)


def test_converted_data_sets(attempt, tmp_path):
    square = [[1, 1], [4, 1], [4, 3], [1, 3]]
    flat = [float(number) for point in square for number in point]
    pixels = encoded(np.zeros((4, 6, 3), np.uint8), ".png")
    label = encoded(np.arange(24, dtype=np.uint8).reshape(4, 6), ".png")
    ints = "".join(f"{number:08b}" for number in [0, 0, 0, 96, 0x38, 0x88, 0x88])
    packed = [int(ints[k : k + 8], 2) for k in range(0, len(ints), 8)]
    size = {"original_width": 6, "original_height": 4}
    brush = size | {"type": "brushlabels", "value": {"format": "rle", "rle": packed, "brushlabels": ["b"]}}
    drawn = size | {
        "type": "polygonlabels",
        "value": {"points": [[10, 10], [90, 10], [50, 90]], "polygonlabels": ["a"]},
    }
    shape = {"label": "a", "points": square, "shape_type": "polygon", "group_id": 1}
    image = {"imagePath": "a.png", "imageHeight": 4, "imageWidth": 6, "imageData": None}
    polygon = {"type": "polygon", "label_id": 0, "points": flat, "z_order": 0, "group": 1}
    mask = {"type": "mask", "label_id": 0, "rle": {"counts": [5, 2, 17], "size": [4, 6]}}
    contents = {
        "labelme": image | {"shapes": [shape, shape | {"shape_type": "rectangle", "points": [[0, 0], [2, 2]]}]},
        "labelstudio": [{"data": {"image": "/x/a.png"}, "annotations": [{"result": [drawn, brush]}]}],
        "datumaro": {
            "categories": {"label": {"labels": [{"name": "a"}]}},
            "items": [{"id": "a", "image": {"path": "a.png", "size": [4, 6]}, "annotations": [polygon, mask]}],
        },
        "coco": {
            "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
            "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [flat], "iscrowd": 0}],
            "categories": [{"id": 1, "name": "a", "isthing": 1, "supercategory": "b"}],
        },
        "cvat": b'<annotations><meta><labels><label><name>a</name></label></labels></meta><image name="a.png" '
        b'width="6" height="4"><mask label="a" rle="0,2,2" left="1" top="1" width="2" height="2" z_order="1"/>'
        b'<ellipse label="a" cx="2" cy="2" rx="1" ry="1" rotation="9"/></image></annotations>',
        "yolo": b"train: .\nnames: [a, b]\n",
        "labels": label,
    }
    codes = []
    for number, random in draws(6, 105):
        name = list(contents)[number % len(contents)]
        content = contents[name]
        broken = break_bytes(content, random) if isinstance(content, bytes) else break_json(content, random)
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "a.png").write_bytes(pixels)
        file = {"cvat": "annotations.xml", "yolo": "data.yaml", "labels": "a_masks.png"}.get(name, "a.json")
        (folder / file).write_bytes(broken)
        if name == "yolo":
            line = f"0 {' '.join(str(x / 10) for x in flat)}".encode()
            (folder / "a.txt").write_bytes(break_bytes(line, random) if random.random() < 0.5 else line)
        source = folder if name in ("labelme", "labels", "yolo") else folder / file
        extra = ["--images", folder] if name in ("coco", "datumaro", "labelstudio") else []
        codes.append(attempt("import", name, source, *extra, "-o", tmp_path / "OUT", "--copy"))
        if codes[-1] == 0:
            out = tmp_path / "OUT"
            data = ["--images", out / "images", "--json", out / "panoptic.json", "--segments", out / "segments"]
            shutil.copytree(out, tmp_path / "kept", dirs_exist_ok=True)
            data = [str(word).replace("OUT", "kept") for word in data]
            assert attempt("check-data", *data) == 0, broken
            shutil.rmtree(tmp_path / "kept")
    assert {0, 1} <= set(codes)


def test_results_of_other_models(attempt, tmp_path):
    results = [
        {"image_id": 10, "category_id": 17, "score": 0.9, "segmentation": {"size": [4, 6], "counts": [5, 2, 17]}},
        {"image_id": 10, "category_id": 3, "score": 0.8, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]},
        {
            "image_id": 10,
            "category_id": 3,
            "score": 0.7,
            "bbox": [0, 0, 3, 2],
            "segmentation": [[0, 0, 3, 0, 3, 2]],
        },
    ]
    files = write_coco(tmp_path / "data")
    (tmp_path / "sem").mkdir()
    semantic = encoded(np.full((4, 6), 200, np.uint8), ".png")
    codes = []
    for number, random in draws(3, 150):
        (tmp_path / "results.json").write_bytes(break_json(results, random))
        (tmp_path / "sem" / "0.png").write_bytes(semantic if number % 4 else break_bytes(semantic, random))
        names = [
            "--instances",
            tmp_path / "results.json",
            "--semantic",
            tmp_path / "sem",
            "--categories",
            files.json,
        ]
        codes.append(attempt("fuse", *names, "-o", tmp_path / "OUT"))
    assert {0, 1} <= set(codes)


def test_configs(attempt, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files = write_coco(tmp_path / "data")
    config = {
        "model": {"backbone": {"name": "resnet18", "weights": None}, "ibpp": {"iterations": 1}, "divisor": 32},
        "data": {"train": {"images": str(files.images), "json": str(files.json), "segments": "s"}, "val": None},
        "optim": {"lr": 0.1, "batch_size": 2, "max_steps": 3, "betas": [0.9, 0.99], "milestones": [1]},
        "augment": {"short": [32], "long": 64, "jitter": [0.5, 1.5], "crop": [32, 32], "flip": 0.5, "color": 0.1},
        "eval": {"short": 32, "long": 64, "fusion": {"sigma": 2.5, "stuff_area": 4}},
        "log": {"every": 1},
        "workers": 0,
        "threads": 1,
    }
    path = tmp_path / "config.yaml"
    for number, random in draws(4, 120):
        if number % 4:
            text = yaml.safe_dump(break_value(config, random)).encode("utf-8", "surrogatepass")
        else:
            text = break_bytes(yaml.safe_dump(config).encode(), random)
        path.write_bytes(text)
        # The folder of segments does not exist: a config that passes every check still ends there.
        assert attempt("train", "--config", path, "--out", tmp_path / "OUT") in (1, 2, -1), text


def test_models(model, attempt, tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(encoded(np.zeros((24, 32, 3), np.uint8), ".png"))
    config = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    codes = []
    for number, random in draws(5, 80):
        broken = tmp_path / "model"
        broken.mkdir(exist_ok=True)
        json_of = break_json(config, random) if number % 4 else json.dumps(config).encode()
        (broken / "config.json").write_bytes(json_of)
        (broken / "model.safetensors").write_bytes(weights if number % 4 else break_bytes(weights, random))
        codes.append(attempt("predict", image, "-o", tmp_path / "OUT", "--checkpoint", broken, "--device", "cpu"))
    assert codes.count(1) > 40


def test_weights_of_other_toolkits(attempt, tmp_path):
    path = tmp_path / "weights.pkl"
    valid = pickle.dumps({"model": {"a.weight": np.ones((2, 2), np.float32)}, "__author__": "x"})
    for _, random in draws(6, 60):
        odd = {"model": {"a.weight": random.choice(ODD)}}
        path.write_bytes(break_bytes(valid, random) if random.random() < 0.7 else pickle.dumps(odd))
        assert attempt("convert", path, "-o", tmp_path / "OUT") in (1, 2, -1)
