"""Models of transformers from a folder and from a local server in the place of the Hub."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers import hub_models
from helpers.hub_models import COCO_LABELS, saved
from PIL import Image

from refine.checkpoint.find import find_model
from refine.checkpoint.folder import load_model
from refine.cli.main import main
from refine.data.ade20k import ADE20K
from refine.errors import RefineError
from refine.formats.writer import PredictionWriter
from refine.networks.choice import ModelChoice
from refine.networks.hub.categories import find_categories
from refine.networks.load import load_network
from refine.structures import VOID

SHA = "0123456789abcdef0123456789abcdef01234567"
ADE20K_SEMANTIC = [entry.get("alias", entry["name"].split(",")[0]) for entry in json.loads(ADE20K.read_text())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "tiny", hub_models.mask2former)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "one.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)).save(path)
    return path


class Hub(http.server.BaseHTTPRequestHandler):
    """The requests of `snapshot_download`: information, list of files, and the files."""

    folder: Path

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, body: bool) -> None:
        part = self.path.split("?")[0].strip("/")
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        if part in (
            "api/models/someone/tiny",
            f"api/models/someone/tiny/revision/{SHA}",
            "api/models/someone/tiny/revision/main",
        ):
            names = [{"rfilename": name} for name in files]
            content = json.dumps({"id": "someone/tiny", "sha": SHA, "siblings": names}).encode()
        elif part.startswith("api/models/someone/tiny/tree/"):
            content = json.dumps(
                [
                    {"type": "file", "path": n, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for n, data in files.items()
                ]
            ).encode()
        elif part.startswith("someone/tiny/resolve/") and (name := part.rpartition("/")[2]) in files:
            content = files[name]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Local server with the repository someone/tiny, which huggingface_hub uses with an empty cache."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Tiny", (Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, constants = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_by_name(hub, folder: Path, image: Path, tmp_path: Path, capsys) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    out = tmp_path / "out"
    options = ["--score-threshold", "0.01", "--device", "cpu"]
    assert main(["predict", str(image), "-o", str(out), "--checkpoint", "hf:someone/tiny", *options]) == 0
    capsys.readouterr()
    found = find_model("hf:someone/tiny")
    assert not {path.name for path in found.iterdir()} & {"pytorch_model.bin", "modeling_tiny.py"}
    content = json.loads((out / "panoptic.json").read_text())
    assert content["info"]["model"] == "hf:someone/tiny"
    assert content["info"]["method"] == "model"
    assert len(content["categories"]) == 133
    hub.shutdown()  # from the cache, without the server
    hub.server_close()
    assert find_model(f"hf:someone/tiny@{SHA}") == found
    assert find_model("hf:someone/tiny") == found


def test_without_a_network_the_message_says_what_to_bring(hub, capsys) -> None:
    with pytest.raises(RefineError, match=r"^hf:someone/absent: cannot be downloaded .*hf download someone/absent"):
        find_model("hf:someone/absent")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(RefineError, match=r"bring the folder, and give its path$"):
        find_model("hf:someone/tiny")
    with pytest.raises(RefineError, match=r"hf:a/b/c: expected hf:OWNER/NAME"):
        find_model("hf:a/b/c")


def test_pickled_weights_and_foreign_code_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.rename(folder / "elsewhere")
    with pytest.raises(RefineError, match=r"has no \*\.safetensors, and other weights may run code"):
        load_network(folder)
    (folder / "elsewhere").rename(weights)
    description = json.loads((folder / "config.json").read_text())
    for kind, words in (
        ("DetrForObjectDetection", "is a 'DetrForObjectDetection', expected one of DetrForSegmentation"),
        ("OddForSemanticSegmentation", "which transformers .* does not have"),
    ):
        own = {"architectures": [kind], "auto_map": {"AutoModel": "odd.Model"}}
        (folder / "config.json").write_text(json.dumps(description | own))
        with pytest.raises(RefineError, match=words):
            load_network(folder)


def test_damaged_and_incomplete_models_are_named(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(iter(sorted(weights)))
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefineError, match=f"1 missing weight, first {name}"):
        load_network(folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RefineError, match="tiny: cannot be loaded"):
        load_network(folder)
    (folder / "preprocessor_config.json").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefineError, match="tiny: cannot be loaded"):
        load_network(folder)
    with pytest.raises(RefineError, match="is a model of transformers; this command needs one of refine's own"):
        load_model(folder)


def test_labels_with_gaps_are_refused(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    last = str(len(COCO_LABELS) - 1)
    content["id2label"][str(len(COCO_LABELS) + 2)] = content["id2label"].pop(last)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(RefineError, match=f"id2label has the keys .*; expected 0 to {last}, one for each output"):
        load_network(folder)


def test_known_names_give_things_and_stuff() -> None:
    found, classes = find_categories(COCO_LABELS, "m")
    assert (found.num_things, found.num_stuff) == (80, 53)
    assert [found[n].name for n in classes] == COCO_LABELS
    found, classes = find_categories(["N/A", *COCO_LABELS[:80], "LABEL_81"], "m")
    assert (len(found), classes[0], classes[-1]) == (80, VOID, VOID)
    found, classes = find_categories(ADE20K_SEMANTIC, "m")
    assert (found.num_things, found.num_stuff) == (100, 50)
    assert found[classes[8]].name == "window"
    assert sorted(classes) == list(range(150))
    full = [entry["name"] for entry in json.loads(ADE20K.read_text())]
    assert find_categories(full, "m") == (found, classes)
    found, _ = find_categories(["road", "traffic sign", "rider"], "m")
    assert [c.id for c in found] == [25, 7, 20]  # Cityscapes' label ids


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["person", "yeti"], "'yeti' is not one of COCO's categories; give --categories FILE.json"),
        (["LABEL_0", "LABEL_1"], "'LABEL_0' is not one of"),
        (["fence", "person"], "are things in one list and stuff in another"),
    ],
)
def test_unknown_names_are_never_guessed(labels: list[str], words: str) -> None:
    with pytest.raises(RefineError, match=words):
        find_categories(labels, "m")


def test_categories_and_class_map_of_the_user(folder: Path, image: Path, tmp_path: Path, capsys) -> None:
    labels = ["LABEL_0", "nucleus", "background"]
    saved(folder, hub_models.mask2former, labels)
    kinds = [{"id": 7, "name": "cell", "isthing": 1}, {"id": 9, "name": "background", "isthing": 0}]
    (tmp_path / "kinds.json").write_text(json.dumps({"categories": kinds}))
    (tmp_path / "map.json").write_text(json.dumps({"nucleus": "cell"}))
    command = ["predict", str(image), "-o", str(tmp_path / "out"), "--checkpoint", str(folder), "--device", "cpu"]
    assert main(command) == 1
    assert "'nucleus' is not one of" in capsys.readouterr().err
    command += ["--categories", str(tmp_path / "kinds.json")]
    assert main(command) == 1
    assert "'nucleus' is not one of the given categories" in capsys.readouterr().err
    assert main([*command, "--class-map", str(tmp_path / "map.json")]) == 0
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [c["id"] for c in content["categories"]] == [7, 9]
    (tmp_path / "map.json").write_text(json.dumps({"nucleus": "cell", "nuclei": "cell"}))
    assert main([*command, "--class-map", str(tmp_path / "map.json")]) == 1
    assert "no model has the class 'nuclei'" in capsys.readouterr().err
    (tmp_path / "map.json").write_text("[1]")
    assert main([*command, "--class-map", str(tmp_path / "map.json")]) == 1
    assert "map.json: expected an object such as" in capsys.readouterr().err


@pytest.mark.parametrize("is_killed", [False, True])
def test_results_of_other_classes_are_not_resumed(
    is_killed, folder: Path, image: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Other ids of categories, and labels that a class map exchanges, after a finished and a killed run."""
    saved(folder, hub_models.mask2former, ["a", "b", "c"])
    kinds, changed = tmp_path / "kinds.json", tmp_path / "changed.json"
    for path, first in ((kinds, 7), (changed, 17)):
        path.write_text(json.dumps([{"id": first + n, "name": "abc"[n], "isthing": int(n < 2)} for n in range(3)]))
    command = ["predict", str(image.parent), "-o", str(tmp_path / "out"), "--checkpoint", str(folder)]
    command += ["--device", "cpu", "--save", "coco", "--resume"]
    same, other = [*command, "--categories", str(kinds)], [*command, "--categories", str(changed)]
    with monkeypatch.context() as patch:
        if is_killed:
            patch.setattr(PredictionWriter, "close", lambda writer: writer.json)
        assert main(same) == 0
    capsys.readouterr()
    assert main(other) == 1
    assert "settings: the classes of --checkpoint, --categories or --class-map. Give" in capsys.readouterr().err
    assert main([*same, "--class-map", '{"a": "b", "b": "a"}']) == 1
    assert "settings: the weights, config or labels of --checkpoint" in capsys.readouterr().err
    assert main(same) == 0
    assert "1 of 1 image finished already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "class_map", "expected"),
    [
        (["sea", "water", "wall"], {"sea": "water", "water": "sea"}, ["water", "sea", "wall"]),
        (["Sea", "water", "wall"], {"Sea": "water", "water": "sea"}, ["water", "sea", "wall"]),
        (["sea", "water", "wall"], {"sea": "water"}, ["water", "water", "wall"]),
        (["LABEL_0", "Blue", "wall"], {"LABEL_0": "water", "Blue": "sea"}, ["water", "sea", "wall"]),
        (["LABEL_0", "water", "wall"], {"LABEL_0": "water", "water": "sea"}, ["water", "sea", "wall"]),
    ],
)
def test_a_class_map_renames_the_labels_of_one_of_several_models_once(
    labels: list[str], class_map: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    semantic = str(saved(tmp_path / "segformer", hub_models.segformer, labels))
    network = ModelChoice(("nuclei",), (semantic,), class_map=json.dumps(class_map)).load("cpu")
    (of_categories,) = network._of_semantic
    of_labels = [of_categories[n] for n in network.semantic[0].classes.tolist()]
    assert [network.categories[n].name for n in of_labels] == expected


def test_instances_and_semantics_of_two_models(image: Path, tmp_path: Path, capsys) -> None:
    """A shipped model for the instances, a SegFormer of the Hub's layout for the semantics."""
    semantic = saved(tmp_path / "segformer", hub_models.segformer, ADE20K_SEMANTIC)
    out = tmp_path / "out"
    two = ["--instances", "nuclei", "--semantic", str(semantic)]
    assert main(["predict", str(image), "-o", str(out), *two, "--device", "cpu"]) == 0
    assert "100 classes without a category in the result" in capsys.readouterr().err
    content = json.loads((out / "panoptic.json").read_text())
    assert content["info"]["model"] == f"nuclei, semantic {semantic}"
    assert [c["name"] for c in content["categories"]][:3] == ["nucleus", "wall", "building"]
    assert sum(c["isthing"] for c in content["categories"]) == 1
    assert main(["predict", str(image), "-o", str(out), *two, "--checkpoint", "nuclei"]) == 1
    assert "give one of them" in capsys.readouterr().err
