"""`refine predict` on videos, stacks, standard input and addresses."""

import csv
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import tifffile
import torch
from helpers.tiny_network import tiny_config
from helpers.videos import make_video
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli import sources
from refine.cli.main import main
from refine.errors import RefineError
from refine.fusion.config import FusionConfig
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.structures import Categories, Category, rgb_to_id

CATEGORIES = Categories([Category(1, "thing", True), Category(2, "ground", False)])
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a small network with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = PanopticModel(tiny_config(0, {"max_detections": 3}), 1, 2).eval()
    save_model(folder, SavedModel(model, CATEGORIES, (32, 48), fusion=FusionConfig(stuff_area=16)))
    return str(folder)


def run(checkpoint, out, *words):
    return main(["predict", *map(str, words), "-o", str(out), "--checkpoint", checkpoint, "--device", "cpu"])


def names(out):
    return [image["file_name"] for image in json.loads((out / "panoptic.json").read_text())["images"]]


def encoded(kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, kind)
    return content.getvalue()


def test_every_frame_of_a_video_is_predicted(checkpoint, tmp_path, capsys):
    make_video(tmp_path / "clip.mp4", rate=7)
    out = tmp_path / "out"
    assert run(checkpoint, out, tmp_path / "clip.mp4", "--save", "overlay,labels") == 0
    assert names(out) == [f"clip/00000{n}.png" for n in range(1, 6)]
    assert len(list((out / "labels/clip").iterdir())) == 5
    assert f"video of the overlays: {out}/overlays/clip.mp4" in capsys.readouterr().out
    with av.open(str(out / "overlays/clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 7
    drawn = [np.asarray(Image.open(out / f"overlays/clip/00000{number}.jpg")) for number in range(1, 6)]
    for number, frame in enumerate(frames):
        errors = [np.abs(frame.astype(int) - overlay).mean() for overlay in drawn]
        assert errors[number] == min(errors) < 10  # both formats lose detail
    before = (out / "overlays/clip.mp4").stat().st_mtime_ns
    (out / "labels/clip/000004.tif").unlink()
    (out / "overlays/clip.mp4").touch()
    assert run(checkpoint, out, tmp_path / "clip.mp4", "--save", "overlay,labels", "--resume") == 0
    assert "4 of 5 images finished already" in capsys.readouterr().err
    assert (out / "overlays/clip.mp4").stat().st_mtime_ns > before
    assert run(checkpoint, tmp_path / "one", tmp_path / "clip.mp4", "--page", "2") == 0
    assert names(tmp_path / "one") == ["clip.mp4"]
    assert not (tmp_path / "one/overlays/clip.mp4").exists()


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_frame_that_fails_is_not_shown_as_in_an_earlier_run(more, checkpoint, tmp_path, monkeypatch, capsys):
    make_video(tmp_path / "clip.mp4")
    out, words = tmp_path / "out", [tmp_path / "clip.mp4", "--save", "overlay,labels", *more]
    assert run(checkpoint, out, *words) == 0
    (out / "labels/clip/000004.tif").unlink()  # or --resume would not try it again
    before = Predictor.fuse

    def fuse(predictor, prediction):
        if numbers.pop(0) == 4:
            raise RefineError("no")
        return before(predictor, prediction)

    numbers = [4] if more else [1, 2, 3, 4, 5]
    monkeypatch.setattr(Predictor, "fuse", fuse)
    assert run(checkpoint, out, *words) == 1
    assert names(out) == [f"clip/00000{n}.png" for n in (1, 2, 3, 5)]
    with av.open(str(out / "overlays/clip.mp4")) as container:
        assert len(list(container.decode(video=0))) == 4


def test_all_pages_of_a_stack_are_predicted_on_request(checkpoint, tmp_path, capsys):
    frames = [Image.fromarray(np.roll(PIXELS, n, 0)) for n in range(3)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "two.png")
    assert run(checkpoint, tmp_path / "none", tmp_path / "stack.tif") == 1
    assert "stack.tif: has 3 pages; choose one with --page 1 to 3, or --page all" in capsys.readouterr().err
    out = tmp_path / "out"
    assert (
        run(checkpoint, out, tmp_path / "stack.tif", tmp_path / "two.png", "--page", "all", "--save", "coco") == 0
    )
    assert names(out) == ["stack/000001.tif", "stack/000002.tif", "stack/000003.tif", "two.png"]
    assert (out / "panoptic/stack/000002.png").read_bytes() == (out / "panoptic/two.png").read_bytes()
    assert (out / "panoptic/stack/000001.png").read_bytes() != (out / "panoptic/two.png").read_bytes()
    with pytest.raises(SystemExit):
        main(["evaluate", "--page", "all"])
    assert "--page: 'all': expected an integer" in capsys.readouterr().err
    (tmp_path / "gt.json").write_text("{}")
    assert run(checkpoint, out, tmp_path, "--json", tmp_path / "gt.json", "--page", "all") == 1
    assert "--page all: --json lists the images" in capsys.readouterr().err


def test_the_table_is_in_micrometres_if_the_file_states_its_resolution(checkpoint, tmp_path):
    stored = PIXELS.astype(np.uint16) * 100
    options = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "x.tif", stored, **options)
    assert run(checkpoint, tmp_path / "out", tmp_path / "x.tif", "--save", "csv,labels") == 0
    ids = rgb_to_id(np.asarray(Image.open(tmp_path / "out/panoptic/x.png")))
    rows = list(csv.DictReader((tmp_path / "out/objects.csv").open()))
    assert rows
    for row in rows:
        assert float(row["area_um2"]) == int(row["area"]) / 4
        means = [float(row[f"mean_{n}"]) for n in (1, 2, 3)]
        assert means == pytest.approx(stored[ids == int(row["id"])].mean(0).tolist())
    assert run(checkpoint, tmp_path / "one", tmp_path / "x.tif", "--save", "csv", "--channel", "2") == 0
    ids = rgb_to_id(np.asarray(Image.open(tmp_path / "one/panoptic/x.png")))
    for row in csv.DictReader((tmp_path / "one/objects.csv").open()):
        assert float(row["mean_1"]) == pytest.approx(stored[ids == int(row["id"]), 1].mean())
        assert row["mean_2"] == ""
    with tifffile.TiffFile(tmp_path / "out/labels/x.tif") as file:
        assert file.pages[0].get_resolution("micrometer") == (2, 2)


def test_an_image_comes_from_standard_input(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.png").write_bytes(encoded())
    assert run(checkpoint, tmp_path / "file", tmp_path / "x.png") == 0
    expected = (tmp_path / "file/panoptic/x.png").read_bytes()

    def give(data, terminal=False):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: terminal))

    give(encoded())
    assert run(checkpoint, tmp_path / "out", "-") == 0
    assert names(tmp_path / "out") == ["stdin"]
    assert (tmp_path / "out/panoptic/stdin.png").read_bytes() == expected
    assert "\n-: things: " in capsys.readouterr().out
    give(encoded()[:-100])
    assert run(checkpoint, tmp_path / "broken", "-") == 1
    assert capsys.readouterr().err.startswith("refine: error: -: is damaged")
    (failure,) = json.loads((tmp_path / "broken/failed.json").read_text())
    assert failure["error"].startswith("-: is damaged")
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    cases = (b"", False, "is empty"), (encoded(), False, "at most 100"), (b"", True, "terminal")
    for data, terminal, message in cases:
        give(data, terminal)
        assert run(checkpoint, tmp_path / "none", "-") == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/a%20b.jpg?size=large")
            self.end_headers()
            return
        if "b.jpg" not in self.path:
            self.send_error(404)
            return
        data = encoded("JPEG")
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """Address of a server on the loopback address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_images_come_from_addresses(checkpoint, server, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = [f"{server}/a%20b.jpg?size=large", f"{server}/moved.jpg"]
    assert run(checkpoint, out, *words) == 0
    assert names(out) == ["a b.jpg", "moved.jpg"]
    assert (out / "panoptic/a b.png").read_bytes() == (out / "panoptic/moved.png").read_bytes()
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()[:2]] == [
        f"{server}/a%20b.jpg",  # without the query, which may be a signature
        f"{server}/moved.jpg",
    ]
    assert run(checkpoint, out, *words, "--resume") == 0
    assert "2 of 2 images finished already" in capsys.readouterr().err
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    for address, message in (
        (f"{server}/none.jpg", "cannot be downloaded (the server returned 404 Not Found); check the address"),
        (f"{server}/b.jpg", "expected at most 100 bytes"),
        (f"{server}/{'x' * 2000}", "is not a possible file name"),
        ("http://127.0.0.1:1/x.jpg", "cannot be downloaded"),
    ):
        assert run(checkpoint, tmp_path / "none", address) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_temporary_files_are_removed_at_exit(monkeypatch, server):
    kept = []
    monkeypatch.setattr(sources.atexit, "register", kept.append)
    (path,) = sources.local_sources([f"{server}/b.jpg"])
    assert Path(path).read_bytes() == encoded("JPEG")
    for cleanup in kept:
        cleanup()
    assert not Path(path).exists()
