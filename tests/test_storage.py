"""Sources and results in an object store: a real S3 server on the loopback address."""

import os
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from helpers.object_store import content, s3_bucket
from helpers.tiny_network import tiny_config
from PIL import Image

from refine import storage
from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.errors import RefineError, WriteError
from refine.formats import journal
from refine.formats.image_list import list_images
from refine.formats.journal import StoredJournal, journals
from refine.fusion.config import FusionConfig
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.storage import Url, list_folder, local_copy, location, modified, replacing, write_bytes
from refine.structures import Categories, Category


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as url:
        yield url


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    categories = Categories([Category(7, "thing", True), Category(9, "ground", False)])
    network = PanopticModel(tiny_config(0, {"max_detections": 5}), 1, 2).eval()
    path = tmp_path_factory.mktemp("model") / "tiny"
    fusion = FusionConfig(stuff_area=16, score_threshold=0.1)
    save_model(path, SavedModel(network, categories, (64, 96), fusion=fusion))
    return str(path)


def predict(model, source, out, *more):
    words = ["predict", str(source), "-o", str(out), "--checkpoint", model, "--device", "cpu", "--recursive"]
    return main([*words, *more])


def test_paths_and_urls():
    assert location("a/b").name == "b"
    assert location("file:///a/b") == Path("/a/b")
    assert location("s3://bucket/a/") == Url("s3://bucket/a")
    assert str(location("s3://bucket") / "x/y.png") == "s3://bucket/x/y.png"


def test_files(bucket, tmp_path):
    place = bucket / "some/file.bin"
    assert not place.exists()
    write_bytes(place, b"one")
    assert place.is_file()
    assert not place.is_dir()
    assert modified(place) > 1.6e9
    with replacing(place) as file:
        file.write(b"two")
    with local_copy(place) as copy:
        assert copy.read_bytes() == b"two"
        assert copy.name == "file.bin"
    assert list((bucket / "some").glob("*.bin")) == list_folder(bucket, recursive=True) == [place]
    assert list_folder(bucket, recursive=False) == []
    with pytest.raises(RefineError, match=r"s3://bucket/some/file.bin: is odd"), local_copy(place) as copy:
        raise RefineError(f"{copy}: is odd")
    with suppress(KeyboardInterrupt), replacing(place) as file:
        file.write(b"three")
        raise KeyboardInterrupt
    with local_copy(place) as copy:
        assert copy.read_bytes() == b"two"
    place.unlink()
    place.unlink(missing_ok=True)
    assert not place.exists()


def test_folders_with_the_characters_of_patterns():
    """Results of another run must not be found, as stale ones are removed."""
    for name in ("run[1]", "run1", "run*"):
        write_bytes(Url("memory://bucket") / f"{name}/unfinished.jsonl/00000001.jsonl", b"{}")
    for name in ("run[1]", "run*"):
        out = Url(f"memory://bucket/{name}")
        assert [str(path).removeprefix("memory:///") for _, path in journals(out)] == [
            f"bucket/{name}/unfinished.jsonl/00000001.jsonl"
        ]


def test_a_file_that_another_process_removes(monkeypatch):
    """Shards that begin at the same time remove the same files of an earlier run."""
    place = Url("memory://bucket/gone.json")
    with monkeypatch.context() as patch:  # seen just before
        patch.setattr(MemoryFileSystem, "exists", lambda *_: True)
        place.unlink(missing_ok=True)
    with pytest.raises(WriteError, match=r"gone\.json: cannot be written"):
        place.unlink()


def test_the_folder_of_results_is_not_read(bucket):
    for name in ("a.png", "out/panoptic/a.png", "outer/b.png"):
        write_bytes(bucket / "photos" / name, b"x")
    for source in (f"{bucket}/photos", f"{bucket}/photos/**/*.png"):
        images = list_images([source], recursive=True, skip=f"{bucket}/photos/out/")
        assert [image.name for image in images] == ["a.png", "outer/b.png"]


def test_failures_are_reported_in_one_line(bucket):
    with (
        pytest.raises(RefineError, match=r"s3://bucket/none: cannot be read \(no such file\); check"),
        local_copy(bucket / "none"),
    ):
        pass
    with pytest.raises(WriteError, match=r"s3://other/x: cannot be written \(.*bucket does not exist"):
        write_bytes(Url("s3://other/x"), b"1")
    with pytest.raises(RefineError, match=r"ftp5://x/y: cannot be opened"):
        Url("ftp5://x/y").exists()


def test_results_equal_those_in_a_folder(bucket, model, tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("a/0.png", "a/1.jpg", "b/0.png", "b/deep/0.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
        write_bytes(bucket / f"images/{name}", path.read_bytes())
    save = ["--save", "coco,overlay,instances"]
    assert predict(model, tmp_path / "images", tmp_path / "out", *save) == 0
    expected = content(tmp_path / "out")
    assert predict(model, bucket / "images", bucket / "out", *save) == 0
    assert content(bucket / "out") == expected
    capsys.readouterr()
    assert predict(model, bucket / "images", bucket / "out", *save, "--resume") == 0
    assert "4 of 4 images finished already" in capsys.readouterr().err
    changed = bucket / "images/b/0.png"
    with local_copy(changed) as copy:
        original = copy.read_bytes()
    write_bytes(changed, original + b"\0")  # which the decoder ignores
    assert predict(model, bucket / "images", bucket / "out", *save, "--resume") == 0
    assert "3 of 4 images finished already" in capsys.readouterr().err
    write_bytes(changed, original)

    for shard in ("1/2", "2/2"):
        assert predict(model, bucket / "images", bucket / "sharded", *save, "--shard", shard) == 0
    assert main(["merge", str(bucket / "sharded")]) == 0
    assert content(bucket / "sharded") == expected

    def stop(*arguments):
        raise OSError("the machine is gone")

    with monkeypatch.context() as patch:  # two images are listed in the store when the process ends
        patch.setattr(journal, "STORE_EVERY", 0)
        patch.setattr(StoredJournal, "close", lambda self: None)
        before = Predictor.predict_raw
        calls = []
        patch.setattr(
            Predictor, "predict_raw", lambda *a: before(*a) if calls.append(a) or len(calls) < 3 else stop()
        )
        with pytest.raises(OSError, match="machine is gone"):
            predict(model, bucket / "images", bucket / "again", *save)
    assert "panoptic.json" not in content(bucket / "again")
    capsys.readouterr()
    assert predict(model, bucket / "images", bucket / "again", *save, "--resume") == 0
    assert "2 of 4 images finished already" in capsys.readouterr().err
    assert content(bucket / "again") == expected


def test_google_cloud_storage(model, tmp_path, monkeypatch, capsys):
    """Runs where `pip install gcsfs gcp-storage-emulator` was run, which the other tests do not need."""
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    google = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    google.start()
    try:
        host, port = google._api._httpd.socket.getsockname()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        folder = Url("gs://bucket")
        for n in range(3):
            path = tmp_path / f"images/{n % 2}/{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), (80 * n, 9, 9)).save(path)
            write_bytes(folder / f"images/{n % 2}/{n}.png", path.read_bytes())
        assert predict(model, tmp_path / "images", tmp_path / "out") == 0
        expected = content(tmp_path / "out")
        assert predict(model, folder / "images", folder / "out") == 0
        assert content(folder / "out") == expected
        capsys.readouterr()
        assert predict(model, folder / "images", folder / "out", "--resume") == 0
        assert "3 of 3 images finished already" in capsys.readouterr().err
        for shard in ("1/2", "2/2"):
            assert predict(model, folder / "images", folder / "sharded", "--shard", shard) == 0
        assert main(["merge", str(folder / "sharded")]) == 0
        assert content(folder / "sharded") == expected
        with pytest.raises(WriteError, match="gs://other/x: cannot be written"):
            write_bytes(Url("gs://other/x"), b"1")
    finally:
        google.stop()


def require_permission(after):
    """Let the server accept this number of requests of unknown keys."""
    address = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(address, after, {"Content-Type": "text/plain"}, method="POST"))


def test_a_bucket_without_permission(bucket, model, tmp_path, capsys):
    assert predict(model, "s3://none/images", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("refine: error: s3://none/images: ")
    assert len(error.splitlines()) == 1
    Image.new("RGB", (60, 40)).save(tmp_path / "x.png")

    require_permission(b"0")
    try:
        assert predict(model, tmp_path / "x.png", bucket / "denied") == 1
    finally:
        require_permission(b"inf")
    error = capsys.readouterr().err
    assert "s3://bucket/denied" in error
    assert "check address and permissions" in error
    assert len(error.splitlines()) == 1


def test_a_missing_extra_is_named(monkeypatch):

    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(RefineError, match=r"s3://x/y: needs fsspec; install .*\[ray\]"):
        storage.Url("s3://x/y").exists()
