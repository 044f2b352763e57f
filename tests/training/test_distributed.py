"""Four processes with unequal shards equal one process with the same global batch."""

import socket
import subprocess
import sys
from pathlib import Path

import torch
from helpers.tiny_run import exhaustive, tiny_run, write_dataset
from safetensors.torch import load_file
from test_resume import SCRIPT

from refine.training.logs import read_log
from refine.training.train import train

EXHAUSTIVE = [
    f"--model.{head}.{field}"
    for head in ("rpn", "box_head")
    for field in ("samples=100000", "positive_fraction=1.0")
]


def torchruns() -> list[list[str]]:
    """Return commands that start two processes on each of two simulated machines."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"]
    return [[sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", *meeting]] * 2


def test_four_processes_equal_one(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", 10)  # four processes evaluate 3, 3, 2 and 2 of them
    config = exhaustive(tiny_run(folder, tmp_path / "one"))
    config.optim.max_steps, config.optim.warmup_factor = 3, 1.0  # the third batch extends over two epochs
    config.data.val = config.data.train
    one = train(config)

    overrides = [*EXHAUSTIVE, "--optim.max_steps=3", "--optim.warmup_factor=1"]
    overrides += [f"--data.val.{k}={getattr(config.data.train, k)}" for k in ("images", "json", "segments")]
    training = [str(SCRIPT), str(folder), str(tmp_path / "many"), *overrides]
    running = [
        subprocess.Popen([*torchrun, *training], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for torchrun in torchruns()
    ]
    for machine in running:
        output, _ = machine.communicate(timeout=600)
        assert machine.returncode == 0, output[-3000:]
    many = tmp_path / "many" / "checkpoints" / one.name

    logs = [read_log(out / "log.jsonl") for out in (tmp_path / "one", tmp_path / "many")]
    for first, second in zip(*logs, strict=True):
        assert first["group"] == second["group"]
        for name in first:
            if name.startswith(("loss", "PQ", "lr")):
                assert abs(first[name] - second[name]) <= 2e-4 * abs(first[name]) + 1e-6, (
                    name,
                    first["step"],
                )
    for name in ("model", "ema"):
        a, b = load_file(one / f"{name}.safetensors"), load_file(many / f"{name}.safetensors")
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4, msg=key)
