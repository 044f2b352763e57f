"""The running page of `refine serve`, without a browser."""

import socket
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refine.checkpoint.find import shipped_models
from refine.cli.main import main
from refine.errors import RefineError
from refine.formats.images import read_image


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


def test_foreign_hosts_and_origins_are_rejected(served):
    import httpx

    url, _ = served
    own = url.rstrip("/")
    assert httpx.get(url).status_code == 200
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 421
    assert httpx.post(f"{url}gradio_api/upload", headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.get(url, headers={"Origin": own}).status_code == 200


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
