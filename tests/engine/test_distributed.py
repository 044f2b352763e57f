"""Two processes learn what one learns from their joint batch."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from test_resume import SCRIPT
from tiny_run import exhaustive, tiny_run, write_dataset

from refine.engine.logs import read_log
from refine.engine.train import train

EXHAUSTIVE = [
    f"--model.{head}.{field}"
    for head in ("rpn", "box_head")
    for field in ("samples=100000", "positive_fraction=1.0")
]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data")
    config = exhaustive(tiny_run(folder, tmp_path / "one"))
    config.optim.max_steps, config.optim.warmup_factor = 3, 1.0
    config.data.val = config.data.train
    one = train(config)

    overrides = [*EXHAUSTIVE, "--optim.max_steps=3", "--optim.warmup_factor=1"]
    overrides += [f"--data.val.{k}={getattr(config.data.train, k)}" for k in ("images", "json", "segments")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(SCRIPT), str(folder), str(tmp_path / "two"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two" / "checkpoints" / one.name

    logs = [read_log(out / "log.jsonl") for out in (tmp_path / "one", tmp_path / "two")]
    for first, second in zip(*logs, strict=True):
        assert first["group"] == second["group"]
        for name in first:
            if name.startswith(("loss", "PQ", "lr")):
                assert abs(first[name] - second[name]) <= 2e-4 * abs(first[name]) + 1e-6, (
                    name,
                    first["step"],
                )
    for name in ("model", "ema"):
        a, b = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4, msg=key)
