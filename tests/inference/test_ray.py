"""Prediction and evaluation on a Ray cluster of two nodes, with processes that are killed."""

import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_run import tiny_model, write_dataset
from PIL import Image

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.data.coco_panoptic import CocoPanoptic
from refine.fusion.config import FusionConfig
from refine.modeling.model import PanopticModel

ray = pytest.importorskip("ray")
IMAGES = 24


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster of two nodes with one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)  # Ray replaces it for the head node and on connecting
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=node)
    except Exception:  # a busy machine may need more than the 30 seconds that Ray waits
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


def hashes(out):
    """Return the hashes of all files but the hidden ones that a killed process was writing."""
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_an_actor(address, out, killed):
    """Kill one of the processes that predict, as soon as the first results are written."""
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list(out.glob("panoptic/*.png"))) < 3:
        time.sleep(0.02)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = re.search(r"PPid:\s(\d+)", (process / "status").read_text())[1]
            of_cluster = address in Path(f"/proc/{parent}/cmdline").read_text()
            if of_cluster and "_Actor" in (process / "cmdline").read_text():
                os.kill(int(process.name), signal.SIGKILL)
                killed.append(process.name)
                return


def test_prediction_does_not_depend_on_workers_and_their_death(cluster, folder, capsys):
    (folder / "images" / "broken.png").write_bytes(b"no image")
    words = ["predict", str(folder / "images"), "--checkpoint", str(folder / "model"), "--device", "cpu"]
    assert main([*words, "--threads", "1", "-o", str(folder / "one")]) == 1
    killed = []
    killer = threading.Thread(target=kill_an_actor, args=(cluster, folder / "many", killed))
    killer.start()
    assert main([*words, "-o", str(folder / "many"), "--ray", cluster]) == 1
    killer.join()
    assert killed
    assert "1 of 25 images failed" in capsys.readouterr().err
    assert hashes(folder / "many") == hashes(folder / "one")
    assert len(hashes(folder / "many")) == 2 * IMAGES + 2


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
    images = [{"id": 7 * n, "file_name": f"{n}.jpg", "height": 24, "width": 32} for n in range(20)]
    results = [
        {"image_id": 7 * n, "category_id": 1, "score": 0.9, "segmentation": [[2, 2, n + 8, 2, n + 8, 14, 2, 14]]}
        for n in range(20)
    ]
    Path("set.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    Path("results.json").write_text(json.dumps(results))
    Path("semantic").mkdir()
    for n in range(20):
        Image.fromarray(np.full((24, 32), 130, np.uint8)).save(f"semantic/{n}.png")
    words = ["fuse", "--instances", "results.json", "--semantic", "semantic", "--categories", "set.json"]
    assert main([*words, "--stuff-area", "10", "-o", "fused"]) == 0
    assert main([*words, "--stuff-area", "10", "-o", "fused_many", "--ray", cluster]) == 0
    assert hashes(Path("fused_many")) == hashes(Path("fused"))
    assert len(hashes(Path("fused"))) == 21


class Deadly:
    """Worker that dies on the item 5."""

    def work(self, items):
        for item in items:
            if item == 5:
                os._exit(1)
            yield item, None

    def give_up(self, item, problem):
        return item, problem


def test_an_item_that_kills_its_process_is_given_up(cluster):
    from refine.inference.on_ray import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    outcomes = dict(Cluster(cluster).connect().map(range(12), Deadly, {}, block=4))
    assert outcomes.pop(5).startswith("the process died 3 times on it")
    assert outcomes == {n: None for n in range(12) if n != 5}
