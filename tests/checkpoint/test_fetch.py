"""Tests of downloading public weights by name: complete, verified and converted once, or with a helpful message.

The server, on the loopback address, can interrupt connections, ignore ranges and report wrong sizes.
"""

import hashlib
import pickle
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.full_width import panoptic_fpn_state

from refine.checkpoint import find
from refine.checkpoint.fetch import cache_folder, fetch
from refine.checkpoint.folder import load_model
from refine.checkpoint.public import PUBLIC, published_digest
from refine.cli.main import main
from refine.errors import RefineError
from refine.inference.predictor import Predictor
from refine.tensors import write_weights

NAME = "coco-panoptic-fpn-r50"


class Server(ThreadingHTTPServer):
    """Server of one file.

    Attributes:
        data: content of the file.
        cut: numbers of bytes after which successive connections break.
        ranges: whether range requests are supported.
        length: value of Content-Length; None for the correct one, "" to omit it.
        requests: Range header of each request, or None.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.cut, self.ranges, self.length = b"", [], True, None
        self.requests: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/zoo"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, range_ = self.server, self.headers.get("Range")
        server.requests.append(range_)
        if not self.path.startswith("/zoo/model_final_"):
            self.send_error(404)
            return
        start = int(range_.removeprefix("bytes=").removesuffix("-")) if range_ and server.ranges else 0
        if start >= len(server.data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        length = str(len(server.data) - start) if server.length is None else server.length
        if length:
            self.send_header("Content-Length", length)
        self.end_headers()
        body = server.data[start:]
        self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def published(server: Server, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a file as the public weights called NAME, with its digest in the file name."""
    server.data = data
    url = f"{server.url}/model_final_{sha256(data)[:6]}.pkl"
    monkeypatch.setitem(find.PUBLIC, NAME, replace(PUBLIC[NAME], url=url))


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    server.data = bytes(range(256)) * 1000
    url, path = f"{server.url}/model_final_.pkl", tmp_path / "a" / "file"
    assert fetch(url, path, sha256(server.data)[:6]).read_bytes() == server.data
    fetch(url, path, sha256(server.data)[:6])
    assert server.requests == [None]
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_resumed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.data, server.ranges = np.random.default_rng(0).bytes(100_000), ranges
    url, path, digest = f"{server.url}/model_final_.pkl", tmp_path / "file", sha256(server.data)[:8]
    server.cut = [30_000, 10_000] if ranges else [30_000]
    assert fetch(url, path, digest).read_bytes() == server.data
    assert server.requests == ([None, "bytes=30000-", "bytes=40000-"] if ranges else [None, "bytes=30000-"])
    # Interrupted too often: received data are kept for the next call.
    path.unlink()
    server.requests, server.cut = [], [1000, 1000, 1000]
    with pytest.raises(RefineError, match=r"interrupted 3 times .*; run the command again to resume"):
        fetch(url, path, digest)
    assert not path.exists()
    assert fetch(url, path, digest).read_bytes() == server.data
    assert server.requests[-1] == ("bytes=3000-" if ranges else "bytes=1000-")


def test_a_wrong_digest_raises_and_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.data = b"something else"
    path = tmp_path / "file"
    with pytest.raises(RefineError, match=rf"SHA-256 begins with {sha256(server.data)[:6]}, expected abcdef"):
        fetch(f"{server.url}/model_final_.pkl", path, "abcdef")
    assert not list(tmp_path.glob("file*"))
    path.write_bytes(b"downloaded manually, but another file")
    with pytest.raises(RefineError, match="expected abcdef; remove it, or replace it with"):
        fetch(f"{server.url}/model_final_.pkl", path, "abcdef")
    assert path.exists()


def test_a_stale_partial_file_is_replaced(server: Server, tmp_path: Path) -> None:
    server.data = b"the file"
    (tmp_path / "file.part").write_bytes(b"longer than the file is")
    assert fetch(f"{server.url}/model_final_.pkl", tmp_path / "file").read_bytes() == b"the file"
    assert server.requests == ["bytes=23-", None]


@pytest.mark.parametrize(
    ("length", "limit", "message"),
    [
        ("20000", 1e9, "interrupted 3 times"),
        ("20000", 15_000, "expected at most 15000 bytes, got 20000"),
        ("", 5000, "expected at most 5000 bytes, got more"),
        (str(10**15), 1e18, "do not fit on the disk"),
    ],
)
def test_a_wrong_size_raises(server: Server, tmp_path: Path, length: str, limit: float, message: str) -> None:
    server.data, server.length, server.ranges = bytes(10_000), length, False
    with pytest.raises(RefineError, match=message):
        fetch(f"{server.url}/model_final_.pkl", tmp_path / "file", limit=limit)
    assert not (tmp_path / "file").exists()


def test_without_a_network_the_message_describes_a_manual_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    with monkeypatch.context() as context:
        context.setattr(urllib.request, "urlopen", unreachable)
        assert main(["models", "--fetch", NAME]) == 1
    message = capsys.readouterr().err
    path = cache_folder() / "downloads" / "model_final_c10459.pkl"
    assert f"{PUBLIC[NAME].url}: cannot be downloaded (Temporary failure in name resolution)" in message
    assert f"put it at {path}" in message
    with pytest.raises(RefineError, match=r"the server returned 404 Not Found"):
        fetch(f"{server.url}/absent", tmp_path / "file")


def test_public_weights_by_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Download (interrupted once), convert and use a narrow model in detectron2's exact layout."""
    state = panoptic_fpn_state(width=8)
    published(server, pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}), monkeypatch)
    server.cut = [50_000]
    assert main(["models", "--fetch", NAME]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert "CC BY-SA 3.0" in (folder / "README.md").read_text()
    predictor = Predictor(NAME, device="cpu")
    assert len(server.requests) == 2
    assert (predictor.categories.num_things, predictor.categories.num_stuff) == (80, 53)
    model = load_model(NAME).model
    conv = model.get_parameter("backbone.conv1.weight")
    assert np.array_equal(conv.detach().numpy(), state["backbone.bottom_up.stem.conv1.weight"])
    assert model.config.channels == "BGR"
    assert main(["models"]) == 0
    assert capsys.readouterr().out.count("fetched at first use") == len(PUBLIC) - 1
    # The downloaded file and its address are valid sources too; each is converted once.
    downloaded = cache_folder() / "downloads" / PUBLIC[NAME].file
    for source in (downloaded, f"{server.url}/{PUBLIC[NAME].file}"):
        again = find.find_model(source)
        assert again != folder
        assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        written = (again / "config.json").stat().st_mtime_ns
        assert (find.find_model(source) / "config.json").stat().st_mtime_ns == written


def test_a_manual_download_needs_no_network(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = pickle.dumps({"model": panoptic_fpn_state(width=8)})
    published(server, data, monkeypatch)
    path = cache_folder() / "downloads" / PUBLIC[NAME].file
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert (find.find_model(NAME) / "config.json").is_file()
    assert server.requests == []


def test_a_backbone_is_not_a_model(server: Server, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(RefineError, match=r"r18\.pth: contains only a backbone, not a model"):
        find.find_model(tmp_path / "r18.pth")
    write_weights(tmp_path / "odd.safetensors", {"encoder.w": torch.ones(2, 2)})
    with pytest.raises(RefineError, match=r"odd\.safetensors: weights: unknown names"):
        find.find_model(tmp_path / "odd.safetensors")


def test_digests_in_file_names() -> None:
    assert [model.digest for model in PUBLIC.values()] == ["c10459", "cafdb1", "be35db", "bf2d0c1e", "73cbd019"]
    assert published_digest("https://x/run/model_0039999.pth") == ""
    assert published_digest("https://x/model-20240131.pth") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in PUBLIC if "panoptic" in n])
def test_full_width(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Random weights of the size of the published networks (184 to 376 MB), interrupted in the middle."""
    cascade = name.endswith("cascade")
    state = panoptic_fpn_state(width=64, depth=101 if "r101" in name else 50, cascade=cascade)
    data = pickle.dumps({"model": state})
    assert abs(len(data) / 1e6 - PUBLIC[name].megabytes) < 1
    monkeypatch.setitem(
        find.PUBLIC, name, replace(PUBLIC[name], url=f"{server.url}/model_final_{sha256(data)[:6]}.pkl")
    )
    server.data, server.cut = data, [100_000_000]
    config = load_model(name).model.config
    assert config.backbone.name == ("resnet101" if "r101" in name else "resnet50")
    assert config.backbone.deform_stages == ([3, 4, 5] if cascade else [])
    assert len(config.box_head.ious) == (3 if cascade else 1)


def test_without_a_home_folder_weights_need_a_folder(monkeypatch):
    monkeypatch.delenv("REFINE_CACHE", raising=False)
    monkeypatch.setattr("refine.checkpoint.fetch.user_cache", lambda: None)
    assert not find.is_cached(NAME)
    with pytest.raises(RefineError, match="set REFINE_CACHE to a folder"):
        find.find_model(NAME)
