"""`refine fuse` on files, and a one-line error for every mistake."""

import json

import numpy as np
import pytest
import torch
from helpers.disk import full_disk
from helpers.tiny_network import tiny_config
from PIL import Image

from refine import fuse
from refine.checkpoint.folder import SavedModel, load_model, save_model
from refine.cli.main import main
from refine.data.resize import network_size
from refine.formats.adapters import add_roi_masks, from_coco
from refine.fusion import FusionConfig
from refine.modeling.config import OcclusionConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories, rgb_to_id

CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 18, "name": "dog", "isthing": 1},
    {"id": 130, "name": "sky", "isthing": 0},
    {"id": 150, "name": "sea", "isthing": 0},
]
SIZE = (24, 32)


@pytest.fixture
def files(tmp_path):
    """Folder with the inputs of two images, one of them without instances."""
    images = [{"id": n, "file_name": f"{name}.jpg", "height": 24, "width": 32} for n, name in ((4, "a"), (9, "b"))]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": [], "categories": CATEGORIES}))
    square = [[2, 2, 14, 2, 14, 14, 2, 14]]
    other = [[8, 8, 28, 8, 28, 20, 8, 20]]
    results = [
        {"image_id": 4, "category_id": 1, "score": 0.9, "segmentation": square},
        {"image_id": 4, "category_id": 18, "score": 0.8, "segmentation": other},
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    for folder in ("semantic", "confidence"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        ids = np.full(SIZE, 130, np.uint8)
        ids[12:] = 150
        ids[:, :1] = 0
        Image.fromarray(ids).save(tmp_path / "semantic" / f"{name}.png")
        confidence = np.full(SIZE, 230, np.uint8)
        confidence[12:] = 60
        Image.fromarray(confidence).save(tmp_path / "confidence" / f"{name}.png")
    return tmp_path


def words(files, *more):
    return [
        "fuse", "--instances", str(files / "results.json"), "--semantic", str(files / "semantic"),
        "--categories", str(files / "set.json"), "--stuff-area", "10", "-o", str(files / "out"), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["heuristic", "shr"])
def test_the_command_equals_the_function(files, method):
    (files / "out").mkdir()
    (files / "out/failed.json").write_text("[]")  # of an earlier run
    assert main(words(files, "--method", method)) == 0
    assert not (files / "out/failed.json").exists()
    content = json.loads((files / "out/panoptic.json").read_text())
    assert [a["image_id"] for a in content["annotations"]] == [4, 9]
    categories = Categories.from_json(CATEGORIES)
    results = json.loads((files / "results.json").read_text())
    sem_seg = torch.full(SIZE, 2)
    sem_seg[12:] = 3
    sem_seg[:, 0] = -1
    expected = fuse(
        from_coco(results, SIZE, categories), sem_seg, categories=categories, method=method,
        config=FusionConfig(stuff_area=10),
    )  # fmt: skip
    ids = rgb_to_id(np.asarray(Image.open(files / "out/panoptic/a.png")))
    assert np.array_equal(ids, expected.segment_ids.numpy())
    assert [s["category_id"] for s in content["annotations"][1]["segments_info"]] == [130, 150]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a small network with random fusion heads on masks and classes."""
    torch.manual_seed(0)
    occlusion = OcclusionConfig(cues=["mask", "label"], conv_channels=8, fc_channels=8)
    config = tiny_config(0, {}, occlusion=occlusion, ranking=True)
    categories = Categories.from_json(CATEGORIES)
    model = PanopticModel(config, categories.num_things, len(categories)).eval()
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, SavedModel(model, categories, test_size=(64, 96), fusion=FusionConfig(), data="nothing"))
    return str(folder)


@pytest.mark.parametrize("method", ["ocfusion", "strong", "soe", "srm"])
def test_learned_rules_use_the_heads_of_the_checkpoint(files, checkpoint, method, capsys):
    # The instances share a fifth of the second mask, so that the head decides the pair.
    edit(files / "results.json", lambda r: r[1].update(segmentation=[[10, 6, 20, 6, 20, 14, 10, 14]]))
    assert main(words(files, "--method", method, "--checkpoint", checkpoint)) == 0
    model = load_model(checkpoint).model
    categories = Categories.from_json(CATEGORIES)
    results = json.loads((files / "results.json").read_text())
    instances = add_roi_masks(from_coco(results, SIZE, categories))
    occlusion = model.occlusion.predict(instances, torch.tensor([[0, 1]]))
    assert (occlusion[0, 1] - 0.5).abs() > 0  # the head was evaluated
    expected = fuse(
        instances, torch.full(SIZE, -1), categories=categories, method=method,
        occlusion=occlusion, ranking=model.ranking.predict(instances, network_size(SIZE, 64, 96)),
    )  # fmt: skip
    ids = rgb_to_id(np.asarray(Image.open(files / "out/panoptic/a.png")))
    assert np.array_equal(np.where(ids <= 2, ids, 0), expected.segment_ids.numpy())


def test_things_of_another_data_set_are_rejected(files, checkpoint, capsys):
    edit(files / "set.json", lambda s: s["categories"][1].update(name="cat"))
    assert main(words(files, "--method", "soe", "--checkpoint", checkpoint)) == 1
    assert "has 'dog' as thing class 2, but --categories has 'cat'" in capsys.readouterr().err
    assert main(words(files, "--method", "srm", "--checkpoint", checkpoint)) == 1
    assert "its things differ from those of --categories" in capsys.readouterr().err


def test_unknown_regions_are_erased(files):
    assert main(words(files, "--confidence", str(files / "confidence"), "--unknown-erasing")) == 0
    content = json.loads((files / "out/panoptic.json").read_text())
    assert [s["category_id"] for s in content["annotations"][1]["segments_info"]] == [130]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (lambda f: (f / "results.json").unlink(), [], "results.json"),
        (lambda f: (f / "results.json").write_text("{}"), [], "results.json: expected a list of mappings"),
        (lambda f: edit(f / "results.json", lambda r: r[0].update(image_id=5)), [], "entry 0: image_id 5"),
        (lambda f: edit(f / "results.json", lambda r: r[0].update(image_id=[4])), [], "entry 0: image_id [4]"),
        (lambda f: edit(f / "results.json", lambda r: r[0].pop("image_id")), [], "entry 0: image_id None"),
        (lambda f: edit(f / "results.json", lambda r: r[0].pop("score")), [], "image 4: entry 0: score is None"),
        (lambda f: edit(f / "results.json", lambda r: r[0].update(score=True)), [], "entry 0: score is True"),
        (lambda f: edit(f / "results.json", lambda r: r[0].update(score=10**400)), [], "entry 0: score is 1000"),
        (lambda f: edit(f / "results.json", lambda r: r[0].update(image_id=True)), [], "entry 0: image_id True"),
        (lambda f: (f / "semantic/a.png").write_bytes(b"no"), [], "a.png: "),
        (lambda f: (f / "confidence/b.png").unlink(), ["--confidence"], "confidence/b.png: cannot be read"),
        (lambda f: edit(f / "results.json", lambda r: r[1].update(category_id=130)), [], "category_id 130"),
        (lambda f: edit(f / "set.json", lambda s: s.update(images=[])), [], "images: the list is empty"),
        (lambda f: edit(f / "set.json", lambda s: s["images"][0].pop("width")), [], r"set.json: images[0]"),
        (lambda f: edit(f / "set.json", lambda s: s["images"][1].update(id=4)), [], "id 4 is used twice"),
        (lambda f: (f / "semantic/b.png").unlink(), [], "b.png: cannot be read"),
        (lambda f: Image.new("RGB", (32, 24)).save(f / "semantic/a.png"), [], "a.png: expected a grey PNG"),
        (lambda f: Image.new("L", (9, 9)).save(f / "semantic/a.png"), [], "expected 32 × 24 pixels, got 9 × 9"),
        (lambda f: Image.new("L", (32, 24), 7).save(f / "semantic/a.png"), [], "a.png: has category id 7"),
        (lambda f: None, ["--unknown-erasing"], "--unknown-erasing: needs --confidence"),
        (lambda f: None, ["--method", "soe"], "--method soe: needs --checkpoint"),
        (lambda f: None, ["--method", "srm"], "--method srm: needs --checkpoint with a trained ranking head"),
        (lambda f: None, ["--checkpoint", "nuclei"], "method 'heuristic' is not learned"),
        (lambda f: None, ["--method", "soe", "--checkpoint", "nuclei"], "has no occlusion head"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_line(files, change, more, message, capsys):
    change(files)
    more = [*more, str(files / "confidence")] if more == ["--confidence"] else more
    assert main(words(files, *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("refine: error: ")
    assert len(error.splitlines()) == 1
    assert message in error
    assert not (files / "out/panoptic.json").exists()


def test_inputs_are_not_overwritten(files, capsys):
    assert main(words(files)) == 0
    made = {path: path.read_bytes() for path in (files / "out").rglob("*.*")}
    for option, path in (("--categories", "out/panoptic.json"), ("--semantic", "out/panoptic")):
        assert main(words(files, option, str(files / path))) == 1
        assert f"{path}: is also an input file; choose a different path" in capsys.readouterr().err
    assert made == {path: path.read_bytes() for path in (files / "out").rglob("*.*")}


def test_a_failure_removes_the_json_of_an_earlier_run(files):
    assert main(words(files)) == 0
    Image.new("L", (32, 24), 7).save(files / "semantic/b.png")
    assert main(words(files, "--score-threshold", "0.85")) == 1
    assert not (files / "out/panoptic.json").exists()


def test_an_image_list_needs_no_annotations(files):
    edit(files / "set.json", lambda content: content.pop("annotations"))
    assert main(words(files)) == 0


def test_subfolders_with_equal_file_names_are_kept_apart(files):
    def move(content):
        for entry in content["images"]:
            entry["file_name"] = f"{entry['file_name'][0]}/0.jpg"

    edit(files / "set.json", move)
    for name in "ab":
        (files / "semantic" / name).mkdir()
        (files / f"semantic/{name}.png").rename(files / f"semantic/{name}/0.png")
    assert main(words(files)) == 0
    content = json.loads((files / "out/panoptic.json").read_text())
    assert [a["file_name"] for a in content["annotations"]] == ["a/0.png", "b/0.png"]
    assert all((files / "out/panoptic" / a["file_name"]).is_file() for a in content["annotations"])


def test_a_full_disk_leaves_no_half_written_map(files, capsys):
    noise = np.random.default_rng(0).choice(np.array([130, 150], np.uint8), (200, 300))
    edit(files / "set.json", lambda s: [entry.update(height=200, width=300) for entry in s["images"]])
    edit(files / "results.json", lambda r: r.clear())
    for name in "ab":
        Image.fromarray(noise).save(files / f"semantic/{name}.png")
    with full_disk():
        assert main(words(files)) == 1
    error = capsys.readouterr().err
    assert "panoptic/a.png: cannot be written (File too large); free space" in error
    assert len(error.splitlines()) == 1
    assert not [path for path in (files / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(("number", "expected"), [(0, {1, 18, 0, 150}), (7, {1, 18, 150})])
def test_0_is_a_class_only_if_a_category_has_this_id(number, expected, files):
    content = json.loads((files / "set.json").read_text())
    content["categories"][2]["id"] = number
    (files / "set.json").write_text(json.dumps(content))
    for name in "ab":
        ids = np.zeros(SIZE, np.uint8)
        ids[12:] = 150
        Image.fromarray(ids).save(files / "semantic" / f"{name}.png")
    assert main(words(files)) == 0
    first, second = json.loads((files / "out/panoptic.json").read_text())["annotations"]
    assert {segment["category_id"] for segment in first["segments_info"]} == expected
    assert {segment["category_id"] for segment in second["segments_info"]} == expected - {1, 18}
