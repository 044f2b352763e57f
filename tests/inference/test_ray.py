"""Prediction, evaluation and fusion on a Ray cluster of two nodes, with processes that die.

Every start of a worker costs seconds, so that few runs show much.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.object_store import content, s3_bucket
from helpers.tiny_run import tiny_model, write_dataset
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.data.coco_panoptic import CocoPanoptic
from refine.errors import RefineError
from refine.formats.writer import PredictionWriter
from refine.fusion.config import FusionConfig
from refine.inference.on_ray import Cluster, PredictWorker
from refine.modeling.model import PanopticModel
from refine.storage import local_copy, write_bytes

ray = pytest.importorskip("ray")
IMAGES = 20


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as url:
        yield url


@pytest.fixture(scope="module")
def cluster(bucket):
    """Address of a cluster of two nodes with one CPU each, whose workers know the object store."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112 - a busy machine needs more than 10 s
    os.environ["RAY_agent_register_timeout_ms"] = "120000"  # noqa: SIM112
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)  # Ray replaces it for the head node and on connecting
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    del node["include_dashboard"]
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    signal.signal(signal.SIGTERM, handler)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with a data set and a model for it, of random weights."""
    folder = tmp_path_factory.mktemp("ray")
    data = write_dataset(folder / "data", 20)
    categories = CocoPanoptic(data / "images", data / "panoptic.json", data / "segments").categories
    torch.manual_seed(0)
    model = PanopticModel(tiny_model(0), categories.num_things, len(categories)).eval()
    fusion = FusionConfig(stuff_area=16, score_threshold=0.05)
    save_model(folder / "model", SavedModel(model, categories, (64, 96), fusion=fusion))
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for n in range(IMAGES):
        pixels = rng.integers(0, 255, (40, 60 if n % 3 else 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{n}.png")
    return folder


class Deadly(PredictWorker):
    """Worker that dies on the image z.png."""

    def work(self, items):
        for item in items:
            if item.name == "z.png":
                os._exit(1)
            yield from PredictWorker.work(self, [item])


@pytest.mark.parametrize(
    ("address", "message"),
    [("", "--ray: Ray does not start on this machine"), ("auto", "--ray auto: no cluster there")],
)
def test_a_cluster_that_cannot_be_had(address, message, monkeypatch):
    def init(**_):
        raise Exception("The current node timed out\nduring startup.")  # as Ray does on a busy machine

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RefineError, match=rf"{message} \(The current node timed out\);"):
        Cluster(address).connect()


def test_prediction_does_not_depend_on_workers_interruptions_and_deaths(
    cluster, bucket, folder, monkeypatch, capsys
):
    """In an object store: stopped by Ctrl-C, and resumed with workers that die three times on one image."""
    (folder / "images" / "broken.png").write_bytes(b"no image")
    words = ["--checkpoint", str(folder / "model"), "--device", "cpu", "--recursive"]
    assert main(["predict", str(folder / "images"), *words, "--threads", "1", "-o", str(folder / "one")]) == 1
    expected = content(folder / "one")
    for path in (folder / "images").iterdir():
        write_bytes(bucket / "images" / path.name, path.read_bytes())
    out = bucket / "out"
    words = ["predict", str(bucket / "images"), *words, "--ray", cluster, "-o", str(out)]
    record, recorded = PredictionWriter.record, []

    def stop(writer, written):
        record(writer, written)
        recorded.append(written.entry["image"]["file_name"])
        if len(recorded) == 3:
            signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores the signal
    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "record", stop)
        assert main(words) == 130
    signal.signal(signal.SIGINT, handler)
    assert [image["file_name"] for image in listed(out)["images"]] == sorted(recorded)

    write_bytes(bucket / "images/z.png", (folder / "images/0.png").read_bytes())
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("refine.inference.on_ray.PredictWorker", Deadly)
    capsys.readouterr()
    assert main([*words, "--resume"]) == 1
    error = capsys.readouterr().err
    assert f"3 of {IMAGES + 2} images finished already" in error
    assert f"{bucket}/images/z.png: the process died 3 times on it" in error
    assert f"2 of {IMAGES + 2} images failed" in error
    found = content(out)
    failed = {entry["file_name"] for entry in json.loads(found.pop("failed.json"))}
    assert failed == {"broken.png", "z.png"}
    expected.pop("failed.json")
    assert found == expected


def listed(out):
    with local_copy(out / "panoptic.json") as path:
        return json.loads(path.read_text())


def test_evaluation_is_that_of_one_process(cluster, folder, capsys):
    data = folder / "data"
    words = ["evaluate", "--checkpoint", str(folder / "model"), "--images", str(data / "images"), "--worst", "0"]
    words += ["--json", str(data / "panoptic.json"), "--segments", str(data / "segments"), "--device", "cpu"]
    assert main([*words, "--threads", "1", "--out", str(folder / "one.json")]) == 0
    one = capsys.readouterr().out
    assert main([*words, "--ray", cluster, "--out", str(folder / "many.json")]) == 0
    assert capsys.readouterr().out == one.replace("one.json", "many.json")
    assert (folder / "many.json").read_bytes() == (folder / "one.json").read_bytes()
    assert json.loads((folder / "one.json").read_text())["images"] == 20


def test_fusion_is_that_of_one_process(cluster, folder, monkeypatch):
    monkeypatch.chdir(folder)  # so that paths are relative
    categories = [{"id": 1, "name": "person", "isthing": 1}, {"id": 130, "name": "sky", "isthing": 0}]
    images = [{"id": 7 * n, "file_name": f"{n}.jpg", "height": 24, "width": 32} for n in range(12)]
    results = [
        {"image_id": 7 * n, "category_id": 1, "score": 0.9, "segmentation": [[2, 2, n + 8, 2, n + 8, 14, 2, 14]]}
        for n in range(12)
    ]
    Path("set.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    Path("results.json").write_text(json.dumps(results))
    Path("semantic").mkdir()
    for n in range(12):
        Image.fromarray(np.full((24, 32), 130, np.uint8)).save(f"semantic/{n}.png")
    words = ["fuse", "--instances", "results.json", "--semantic", "semantic", "--categories", "set.json"]
    assert main([*words, "--stuff-area", "10", "-o", "fused"]) == 0
    assert main([*words, "--stuff-area", "10", "-o", "fused_many", "--ray", cluster]) == 0
    assert content(Path("fused_many")) == content(Path("fused"))
    assert len(content(Path("fused"))) == 13
