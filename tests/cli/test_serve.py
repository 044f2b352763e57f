"""The page of `refine serve`: what stands behind it, and the served page itself, asked without a browser."""

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

import numpy as np
import pytest
from PIL import Image

import refine.serve.results
from refine.cli.main import main
from refine.errors import RefineError
from refine.formats.images import read_image
from refine.serve.results import MAX_PIXELS, VIEW_SIDE, Models, archive_file, overlay_file, view
from refine.structures import rgb_to_id


def decoded(url: str) -> bytes:
    return base64.b64decode(url.split(",", 1)[1])


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(decoded(url))))


@pytest.fixture(scope="module")
def models():
    return Models("nuclei", device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two parts of a micrograph; the second is narrower."""
    mahotas = pytest.importorskip("mahotas")
    whole = Image.open(Path(mahotas.__file__).parent / "demos" / "data" / "nuclear.png")
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "left.png", folder / "right.png"]
    whole.crop((0, 0, 640, 480)).save(paths[0])
    whole.crop((600, 300, 1080, 780)).save(paths[1])
    return paths


@pytest.fixture(scope="module")
def look(models, pictures):
    return models.look(pictures[0], "nuclei")


def test_fusing_again_does_not_run_the_network(models, look, monkeypatch):
    own = models.load("nuclei")
    before = models.fuse(look, own.method, own.fusion)
    monkeypatch.setattr(type(own.model), "predict", lambda *_: pytest.fail("the network ran"))
    scores = [s.score for s in before.segments if s.isthing]
    middle = statistics.median(scores)
    high = models.fuse(look, own.method, replace(own.fusion, score_threshold=middle))
    assert 0 < sum(s.isthing for s in high.segments) < len(scores)
    assert all(s.score >= middle for s in high.segments if s.isthing)
    erased = models.fuse(look, own.method, replace(own.fusion, unknown_erasing=True, ue_threshold=1.0))
    assert [s for s in before.segments if not s.isthing]
    assert not [s for s in erased.segments if not s.isthing]
    assert own.fusion.score_threshold == 0.5  # nobody's settings become everybody's


def test_the_view_says_what_the_pixels_are(models, look, monkeypatch):
    own = models.load("nuclei")
    result = models.fuse(look, own.method, own.fusion)
    shown = view(look, result)
    assert (shown["name"], shown["width"], shown["height"]) == ("left.png", 640, 480)
    ids = rgb_to_id(pixels(shown["ids"]))
    assert (ids == result.segment_ids.numpy()).all()
    areas = {i: int((ids == i).sum()) for i in np.unique(ids) if i}
    assert {s["id"]: s["area"] for s in shown["segments"]} == areas
    assert {s["name"] for s in shown["segments"]} == {"nucleus", "background"}
    assert pixels(shown["picture"]).shape == pixels(shown["overlay"]).shape == (480, 640, 3)
    json.dumps(shown)
    # A larger picture is shown smaller; the segments stay those of the picture.
    monkeypatch.setattr(refine.serve.results, "VIEW_SIDE", 160)
    small = view(look, result)
    assert pixels(small["ids"]).shape == pixels(small["overlay"]).shape == (120, 160, 3)
    assert set(np.unique(rgb_to_id(pixels(small["ids"])))) <= set(np.unique(ids))
    assert small["segments"] == shown["segments"]
    assert VIEW_SIDE >= 1000


def test_files_are_those_of_refine_predict(models, look, pictures, tmp_path):
    own = models.load("nuclei")
    result = models.fuse(look, own.method, own.fusion)
    handed = archive_file(look, result)
    assert handed["name"] == "left_panoptic.zip"
    with zipfile.ZipFile(io.BytesIO(decoded(handed["data"]))) as archive:
        archive.extractall(tmp_path / "page")
    assert main(["predict", str(pictures[0]), "-o", str(tmp_path / "predict"), "--device", "cpu"]) == 0
    files = {p.relative_to(tmp_path / "predict") for p in (tmp_path / "predict").rglob("*.*")}
    assert files == {Path("panoptic.json"), Path("panoptic/left.png"), Path("overlays/left.jpg")}
    for file in files:
        assert (tmp_path / "page" / file).read_bytes() == (tmp_path / "predict" / file).read_bytes()
    assert overlay_file(look, result)["name"] == "left_overlay.jpg"
    assert pixels(overlay_file(look, result)["data"]).shape == (480, 640, 3)


def test_what_cannot_be_done_is_told_without_folders(models, look, pictures, tmp_path, monkeypatch):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    with pytest.raises(RefineError, match=r"^notes\.png: is not a picture"):
        models.look(text, "nuclei")
    own = models.load("nuclei")
    with pytest.raises(RefineError, match="no occlusion head"):
        models.fuse(look, "soe", own.fusion)
    monkeypatch.setattr(refine.serve.results, "MAX_PIXELS", 1000)
    with pytest.raises(RefineError, match=r"^left\.png: has .* million pixels"):
        models.look(pictures[0], "nuclei")
    assert MAX_PIXELS > 1000


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve"]) == 1
    assert "refine-panoptic[serve]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def served(models):
    """The page on a free port, and the addresses outside this machine that anything here called."""
    pytest.importorskip("gradio", reason="the page needs Gradio (extra `serve`)")
    from refine.serve.page import build, launch

    strangers = []
    connect = socket.socket.connect

    def watched(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            strangers.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        patch.setattr(socket.socket, "connect", watched)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        page = build(models)
        launch(page, "127.0.0.1", port)
        yield page.local_url, strangers
        page.close()


def visitor(served):
    from gradio_client import Client

    return Client(served[0], verbose=False, httpx_kwargs={"timeout": 60})  # a busy machine


SETTINGS = ["heuristic", 0.5, False, 0.5]


def opened(client, path: Path):
    from gradio_client import handle_file

    return client.predict(handle_file(str(path)), "nuclei", *SETTINGS, api_name="/open")


def test_visitors_do_not_mix(served, pictures):
    clients = [visitor(served) for _ in pictures]
    with ThreadPoolExecutor() as pool:
        first = list(pool.map(opened, clients, pictures))
    assert [(v["name"], v["width"]) for v in first] == [("left.png", 640), ("right.png", 480)]
    for client, before in zip(clients, first, strict=True):
        scores = [s["score"] for s in before["segments"] if s["thing"]]
        after = client.predict("heuristic", statistics.median(scores), False, 0.5, api_name="/fuse")
        assert (after["name"], after["seconds"]) == (before["name"], before["seconds"])  # the same look
        assert 0 < len(after["segments"]) < len(before["segments"])


def test_errors_stand_on_the_page(served, pictures, tmp_path):
    client = visitor(served)
    bad = tmp_path / "bad.png"
    bad.write_bytes(pictures[0].read_bytes()[:400])
    told = opened(client, bad)["error"]
    assert told.startswith("bad.png: is damaged")
    opened(client, pictures[1])
    told = client.predict("srm", 0.5, False, 0.5, api_name="/fuse")["error"]
    assert "no ranking head" in told
    again = client.predict(*SETTINGS, api_name="/fuse")
    assert again["name"] == "right.png"


def test_nothing_calls_home(served):
    import httpx

    url, strangers = served
    page = httpx.get(url).text
    assert "refine" in page
    assert not [tag for tag in ("fonts.googleapis", "cdn.") if tag in page]
    assert not strangers


def test_addresses_that_cannot_be_served(models, served):
    from refine.serve.page import build, launch

    host, port = served[0].rstrip("/").rsplit("/", 1)[1].split(":")
    with pytest.raises(RefineError, match=f"{host}:{port}: cannot be served"):
        launch(build(models), host, int(port))


def test_examples_are_pictures_at_hand(monkeypatch):
    pytest.importorskip("gradio")
    from refine.serve import page

    found = page.packaged_pictures()
    assert "nuclear.png" in {path.name for path in found}
    assert all(read_image(path).shape[0] == 3 for path in found)
    monkeypatch.setattr(page, "EXAMPLES", (("nowhere", "picture.png"), ("refine", "nowhere.png")))
    assert page.packaged_pictures() == []
