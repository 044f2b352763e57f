"""Memory of `refine serve` over many requests.

python benchmarks/serve_memory.py --requests 180

One visitor sends images, each different from the last, and the resident memory of the server is printed now and
then. The slope is that of the second half, where models are loaded and caches are full.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=180, help="images to send (180)")
    parser.add_argument("--side", type=int, default=640, help="pixels of an image's longer side (640)")
    parser.add_argument("--every", type=int, default=20, help="requests between two lines (20)")
    parser.add_argument("--checkpoint", default="nuclei", help="model (nuclei)")
    options = parser.parse_args()
    memory = []
    with tempfile.TemporaryDirectory() as folder, server(options.checkpoint) as (url, pid):
        client = Client(url, verbose=False)
        for n, path in enumerate(images(Path(folder), options.requests, options.side), 1):
            view = client.predict(
                handle_file(path), options.checkpoint, "heuristic", 0.5, False, 0.5, api_name="/open"
            )
            if "error" in view:
                raise RuntimeError(view["error"])
            memory.append(resident(pid))
            if n == 1 or n % options.every == 0:
                print(f"{n:5} requests {memory[-1]:7.0f} MiB", flush=True)
    half = memory[len(memory) // 2 :]
    if len(half) > 1:
        print(
            f"{statistics.linear_regression(range(len(half)), half).slope:.2f} MiB per request in the second half"
        )


@contextmanager
def server(checkpoint: str) -> Iterator[tuple[str, int]]:
    """Run `refine serve` on a free port: its address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["serve", "--checkpoint", checkpoint, "--device", "cpu", "--port", port]
    with subprocess.Popen([sys.executable, "-m", "refine", *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not any(line.startswith("open ") for line in process.stdout):
                raise RuntimeError("the server did not start")
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def images(folder: Path, count: int, side: int) -> Iterator[Path]:
    """Blobs on noise, every image of another size and content."""
    random = np.random.default_rng(0)
    for n in range(count):
        height, width = side - int(random.integers(side // 4)), side - int(random.integers(side // 4))
        pixels = random.integers(0, 40, (height, width), dtype=np.uint8)
        for _ in range(20):
            y, x, radius = random.integers(height), random.integers(width), random.integers(8, 24)
            rows, columns = np.ogrid[:height, :width]
            pixels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 180
        path = folder / f"{n:04}.png"
        Image.fromarray(pixels).save(path)
        yield path


def resident(pid: int) -> float:
    """Resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


if __name__ == "__main__":
    main()
