"""`torchrun … refine evaluate`: four processes with parts of different sizes give the result of one."""

import subprocess
import sys

import torch
from helpers.tiny_run import tiny_model, write_dataset

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.data.coco_panoptic import CocoPanoptic
from refine.fusion.config import FusionConfig
from refine.modeling.model import PanopticModel


def test_four_processes_equal_one(tmp_path, capsys):
    data = write_dataset(tmp_path / "data", 6)
    categories = CocoPanoptic(data / "images", data / "panoptic.json", data / "segments").categories
    model = PanopticModel(tiny_model(0), categories.num_things, len(categories)).eval()
    fusion = FusionConfig(stuff_area=16, score_threshold=0.05)
    save_model(tmp_path / "model", SavedModel(model, categories, (64, 96), fusion=fusion))
    torch.set_num_threads(1)
    words = ["evaluate", "--checkpoint", str(tmp_path / "model"), "--images", str(data / "images"), "--worst", "1"]
    words += ["--json", str(data / "panoptic.json"), "--segments", str(data / "segments"), "--device", "cpu"]
    words += ["--threads", "1", "--out"]
    assert main([*words, str(tmp_path / "one.json")]) == 0
    output = capsys.readouterr().out
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    done = subprocess.run(
        [*torchrun, "-m", "refine", *words, str(tmp_path / "four.json")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == output.replace("one.json", "four.json")
    assert (tmp_path / "four.json").read_bytes() == (tmp_path / "one.json").read_bytes()
