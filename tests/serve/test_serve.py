"""`refine serve` without a browser: its parts, and the running server."""

import base64
import io
import json
import socket
import statistics
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import refine.serve.models
import refine.serve.results
from refine.checkpoint.find import shipped_models
from refine.cli.main import main
from refine.errors import RefineError
from refine.formats.images import read_image
from refine.ops.masks import MaskRuns
from refine.serve.access import is_local_name, is_loopback
from refine.serve.actions import Actions
from refine.serve.models import MAX_PIXELS, Models, Upload, Uploads
from refine.serve.results import VIEW_SIDE, archive_file, overlay_file, view
from refine.structures import rgb_to_id


def decoded(url: str) -> bytes:
    return base64.b64decode(url.split(",", 1)[1])


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(decoded(url))))


@pytest.fixture(scope="module")
def models():
    return Models("nuclei", device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two crops of a micrograph; the second is narrower."""
    mahotas = pytest.importorskip("mahotas")
    whole = Image.open(Path(mahotas.__file__).parent / "demos" / "data" / "nuclear.png")
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "left.png", folder / "right.png"]
    whole.crop((0, 0, 640, 480)).save(paths[0])
    whole.crop((600, 300, 1080, 780)).save(paths[1])
    return paths


@pytest.fixture(scope="module")
def upload(models, images):
    return models.predict(images[0], "nuclei")


def test_fusing_again_does_not_run_the_network(models, upload, monkeypatch):
    own = models.predictor("nuclei")
    threshold = own.fusion.score_threshold
    before = models.fuse(upload, own.method, own.fusion)
    monkeypatch.setattr(type(own.model), "predict", lambda *_: pytest.fail("the network ran"))
    scores = [s.score for s in before.segments if s.isthing]
    middle = statistics.median(scores)
    high = models.fuse(upload, own.method, replace(own.fusion, score_threshold=middle))
    assert 0 < sum(s.isthing for s in high.segments) < len(scores)
    assert all(s.score >= middle for s in high.segments if s.isthing)
    erased = models.fuse(upload, own.method, replace(own.fusion, unknown_erasing=True, ue_threshold=1.0))
    assert [s for s in before.segments if not s.isthing]
    assert not [s for s in erased.segments if not s.isthing]
    assert own.fusion.score_threshold == threshold < middle  # settings of one session do not leak


def test_the_view_describes_the_pixels(models, upload, monkeypatch):
    own = models.predictor("nuclei")
    result = models.fuse(upload, own.method, own.fusion)
    shown = view(upload, result)
    assert (shown["name"], shown["width"], shown["height"]) == ("left.png", 640, 480)
    ids = rgb_to_id(pixels(shown["ids"]))
    assert (ids == result.segment_ids.numpy()).all()
    areas = {i: int((ids == i).sum()) for i in np.unique(ids) if i}
    assert {s["id"]: s["area"] for s in shown["segments"]} == areas
    assert {s["name"] for s in shown["segments"]} == {"nucleus", "background"}
    assert pixels(shown["image"]).shape == pixels(shown["overlay"]).shape == (480, 640, 3)
    json.dumps(shown)
    # Larger images are displayed smaller; areas remain those of the original image.
    monkeypatch.setattr(refine.serve.results, "VIEW_SIDE", 160)
    small = view(upload, result)
    assert pixels(small["ids"]).shape == pixels(small["overlay"]).shape == (120, 160, 3)
    assert set(np.unique(rgb_to_id(pixels(small["ids"])))) <= set(np.unique(ids))
    assert small["segments"] == shown["segments"]
    assert VIEW_SIDE >= 1000


def test_downloads_equal_the_files_of_refine_predict(models, upload, images, tmp_path):
    own = models.predictor("nuclei")
    result = models.fuse(upload, own.method, own.fusion)
    download = archive_file(upload, result)
    assert download["name"] == "left_panoptic.zip"
    with zipfile.ZipFile(io.BytesIO(decoded(download["data"]))) as archive:
        archive.extractall(tmp_path / "page")
    assert (
        main(
            [
                "predict",
                str(images[0]),
                "-o",
                str(tmp_path / "predict"),
                "--device",
                "cpu",
                "--checkpoint",
                "nuclei",
            ]
        )
        == 0
    )
    files = {p.relative_to(tmp_path / "predict") for p in (tmp_path / "predict").rglob("*.*")}
    files.discard(Path("sources.jsonl"))  # for --resume
    assert files == {Path("panoptic.json"), Path("panoptic/left.png"), Path("overlays/left.jpg")}
    page, predict = ((tmp_path / name / "panoptic.json").read_text() for name in ("page", "predict"))
    page, predict = json.loads(page), json.loads(predict)
    assert page.pop("info")["model"] == predict.pop("info")["model"] == "nuclei"
    # The page keeps detections below the threshold, and convolutions of more boxes round differently.
    ours, theirs = (
        [s.pop("score") for a in side["annotations"] for s in a["segments_info"]] for side in (page, predict)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert page == predict
    for file in files - {Path("panoptic.json")}:
        assert (tmp_path / "page" / file).read_bytes() == (tmp_path / "predict" / file).read_bytes()
    assert overlay_file(upload, result)["name"] == "left_overlay.jpg"
    assert pixels(overlay_file(upload, result)["data"]).shape == (480, 640, 3)


def test_errors_do_not_name_folders(models, upload, images, tmp_path, monkeypatch):
    text = tmp_path / "notes.png"
    text.write_text("no image")
    with pytest.raises(RefineError, match=r"^notes\.png: is not a supported image"):
        models.predict(text, "nuclei")
    own = models.predictor("nuclei")
    with pytest.raises(RefineError, match="no occlusion head"):
        models.fuse(upload, "soe", own.fusion)
    monkeypatch.setattr(refine.serve.models, "MAX_PIXELS", 1000)
    with pytest.raises(RefineError, match=r"^left\.png: has more than 1000 pixels"):
        models.predict(images[0], "nuclei")
    assert MAX_PIXELS > 1000


def test_without_gradio_the_error_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("refine.cli.serve.find_spec", lambda name: None)
    assert main(["serve"]) == 1
    assert "pip install -e '.[serve]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    """URL of the running page, and the addresses outside this machine that were connected to."""
    pytest.importorskip("gradio", reason="the page needs Gradio (extra `serve`)")
    from refine.serve.page import build, launch

    external = []
    connect = socket.socket.connect

    def watched(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            external.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        patch.setattr(socket.socket, "connect", watched)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        page = build(models, tmp_path_factory.mktemp("uploads"))
        launch(page, "127.0.0.1", port)
        yield page.local_url, external
        page.close()


def visitor(served):
    from gradio_client import Client

    return Client(served[0], verbose=False, httpx_kwargs={"timeout": 60})  # a busy machine


SETTINGS = ["heuristic", 0.5, False, 0.5]


def opened(client, path: Path):
    from gradio_client import handle_file

    return client.predict(handle_file(str(path)), "nuclei", *SETTINGS, api_name="/open")


def test_sessions_are_separate(served, images):
    clients = [visitor(served) for _ in images]
    with ThreadPoolExecutor() as pool:
        first = list(pool.map(opened, clients, images))
    assert [(v["name"], v["width"]) for v in first] == [("left.png", 640), ("right.png", 480)]
    for client, before in zip(clients, first, strict=True):
        scores = [s["score"] for s in before["segments"] if s["thing"]]
        after = client.predict("heuristic", statistics.median(scores), False, 0.5, api_name="/fuse")
        assert (after["name"], after["seconds"]) == (before["name"], before["seconds"])  # the same upload
        assert 0 < len(after["segments"]) < len(before["segments"])


def test_errors_are_displayed_on_the_page(served, images, tmp_path):
    client = visitor(served)
    bad = tmp_path / "bad.png"
    bad.write_bytes(images[0].read_bytes()[:400])
    error = opened(client, bad)["error"]
    assert error.startswith("bad.png: is damaged")
    opened(client, images[1])
    error = client.predict("srm", 0.5, False, 0.5, api_name="/fuse")["error"]
    assert "no ranking head" in error
    again = client.predict(*SETTINGS, api_name="/fuse")
    assert again["name"] == "right.png"


def test_no_external_connections(served):
    import httpx

    url, external = served
    page = httpx.get(url).text
    assert "refine" in page
    assert not [tag for tag in ("fonts.googleapis", "cdn.") if tag in page]
    assert not external


def test_an_address_in_use_is_reported(models, served, tmp_path):
    from refine.serve.page import build, launch

    host, port = served[0].rstrip("/").rsplit("/", 1)[1].split(":")
    with pytest.raises(RefineError, match=f"{host}:{port}: cannot be served"):
        launch(build(models, tmp_path), host, int(port))


def test_examples_are_installed_images_with_a_fitting_model(monkeypatch):
    pytest.importorskip("gradio")
    from refine.serve import page

    found = page.packaged_images()
    assert {path.name: model for _, path, model in found}["nuclear.png"] == "nuclei"
    assert all(read_image(path).shape[0] == 3 and model in shipped_models() for _, path, model in found)
    missing = (("a", "nowhere", "image.png", "nuclei"), ("b", "refine", "nowhere.png", "nuclei"))
    monkeypatch.setattr(page, "EXAMPLES", missing)
    assert page.packaged_images() == []


def test_uploads_are_kept_by_bytes_and_their_files_deleted(tmp_path, upload):
    def put(visitor: str) -> Path:
        path = tmp_path / f"{visitor}.png"
        path.write_bytes(b"x")
        uploads.put(visitor, replace(upload, path=path))
        return path

    example = tmp_path.parent / "example.png"
    example.write_bytes(b"an example")
    uploads = Uploads(tmp_path, [example], capacity=2 * upload.nbytes)
    assert upload.nbytes > 9 * 640 * 480  # image, classes and confidences
    first, second = put("first"), put("second")
    assert uploads.get("first") is not None
    third = put("third")  # the second is least recently used
    assert uploads.get("second") is None
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    uploads.put("first", replace(upload, path=first))  # the same file under another model
    assert first.exists()
    uploads.drop("first")
    assert not first.exists()
    uploads.put("same", replace(upload, path=third))
    uploads.drop("third")
    assert third.exists()  # another session uploaded the same file
    copy = tmp_path / "copy.png"
    copy.write_bytes(b"an example")
    for path in (example, copy):
        uploads.put("third", replace(upload, path=path))
        uploads.drop("third")
        assert path.exists()
    alone = Uploads(tmp_path, capacity=1)
    alone.put("a", upload)
    assert alone.get("a") is upload


def test_possibly_missed_objects_are_displayed(models, upload, tmp_path, monkeypatch):
    predictor = models.predictor("nuclei")
    actions, visitor = Actions(models, tmp_path), SimpleNamespace(session_hash="visitor")
    actions.uploads.put("visitor", replace(upload, prediction=replace(upload.prediction, scale=0.4)))
    settings = (visitor, predictor.method, 0.0, False, 0.5)
    (remark,) = actions.fuse(*settings)[0]["remarks"]
    assert remark.startswith("left.png is reduced to less than 50%")
    monkeypatch.setattr(predictor.network, "max_detections", len(upload.prediction.instances))
    full, _ = actions.fuse(*settings)[0]["remarks"]
    assert full.startswith("left.png is full")


def test_the_size_of_an_upload_includes_all_tensors(models, upload, images, monkeypatch):
    assert upload.prediction.sem_probabilities is None
    predictor = models.predictor("nuclei")
    monkeypatch.setattr(predictor, "fusion", replace(predictor.fusion, ue_region="dilated"))
    dilated = models.predict(images[0], "nuclei")
    probabilities = dilated.prediction.sem_probabilities
    logits, classes = probabilities.logits, probabilities.classes
    assert logits.nbytes > 0
    assert dilated.nbytes == upload.nbytes + logits.nbytes + classes.nbytes
    starts, ends, of = torch.tensor([0, 9]), torch.tensor([5, 12]), torch.tensor([0, 1])
    instances = replace(upload.prediction.instances[:2], runs=MaskRuns((480, 640), 2, of, starts, ends))
    with_runs = replace(upload, prediction=replace(upload.prediction, instances=instances))
    without = replace(instances, runs=None)
    without_runs = replace(upload, prediction=replace(upload.prediction, instances=without))
    assert with_runs.nbytes == without_runs.nbytes + 3 * 2 * 8


def test_a_busy_network_is_reported_after_a_timeout(models, images, monkeypatch):
    monkeypatch.setattr(refine.serve.models, "PATIENCE", 0.01)
    with models._turn(), pytest.raises(RefineError, match="busy"):
        models.predict(images[0], "nuclei")
    assert isinstance(models.predict(images[0], "nuclei"), Upload)


def test_a_huge_image_is_rejected_by_its_header(models, tmp_path, monkeypatch):
    """A file of a few kilobytes may hold 48 million pixels of one colour."""
    path = tmp_path / "flat.png"
    Image.new("L", (8000, 6000)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(RefineError, match=r"^flat\.png: has more than 40000000 pixels"):
        models.predict(path, "nuclei")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1:7860", True),
        ("localhost", True),
        ("[::1]:80", True),
        ("192.168.1.5:7860", True),
        (socket.gethostname(), True),
        ("evil.example:7860", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_local_host_names(host, local):
    assert is_local_name(host) is local


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.1.5")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_foreign_hosts_and_origins_are_rejected(served):
    import httpx

    url, _ = served
    own = url.rstrip("/")
    assert httpx.get(url).status_code == 200
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 421
    assert httpx.post(f"{url}gradio_api/upload", headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.get(url, headers={"Origin": own}).status_code == 200


def test_a_public_page_without_a_password_warns(monkeypatch, capsys):
    page = pytest.importorskip("refine.serve.page")
    monkeypatch.setattr(page, "launch", lambda *_: (_ for _ in ()).throw(RefineError("stop")))
    for host, auth, warned in (("0.0.0.0", None, True), ("0.0.0.0", ("a", "b"), False), ("127.0.0.1", None, False)):
        with pytest.raises(RefineError, match="stop"):
            page.serve(Models(device="cpu"), host, 1, auth)
        assert ("warning" in capsys.readouterr().err) is warned


def test_invalid_passwords_are_reported(capsys):
    for odd in ("name", "name:", ":word"):
        assert main(["serve", "--auth", odd]) == 1
        assert "--auth: expected USER:PASSWORD" in capsys.readouterr().err


def test_only_rules_whose_heads_the_model_has_are_offered(models):
    actions = pytest.importorskip("refine.serve.actions")
    method, *_ = actions.Actions(models, "uploads").own_settings("nuclei")
    assert [name for name, _ in method.choices] == ["heuristic", "shr"]
    assert "srm" in method.info
