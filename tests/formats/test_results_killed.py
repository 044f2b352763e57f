"""Runs that are killed before any of their files gets its name, and resumed."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from helpers.kill import run_until_killed
from helpers.results import CATEGORIES, HEIGHT, WIDTH, make_result
from PIL import Image

from refine.formats.image_list import ImageFile
from refine.formats.journal import JOURNAL
from refine.formats.results.saver import ImageResult
from refine.formats.writer import PredictionWriter
from refine.savers import SAVERS, encode, find_savers
from refine.storage import stamp

PIXELS = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def sums(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()
    }


def test_a_killed_run_has_whole_results_or_none(tmp_path):
    images = [ImageFile(tmp_path / name, name, n) for n, name in enumerate(("a.png", "b/c.png"), 1)]
    for image in images:
        image.path.parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(image.path)
    savers, pixels, result = find_savers(list(SAVERS)), torch.from_numpy(PIXELS).permute(2, 0, 1), make_result()

    def work(out: Path, resume: bool = False) -> set[str]:
        with PredictionWriter(out, CATEGORIES, {"model": "m"}, savers=savers) as writer:
            finished = writer.resume(images) if resume else set()
            for image in images:
                if image.name not in finished:
                    item = ImageResult(result, image.name, pixels, 0.5)
                    writer.add(image.id, image.name, result, encode(savers, item), stamp(image.path))
        return finished

    work(tmp_path / "whole")
    whole = sums(tmp_path / "whole")
    resumed = set()
    for count in (
        *range(0, len(whole) - 6, 7),
        *range(len(whole) - 6, len(whole)),
    ):  # the last ones join all images
        out, left = tmp_path / str(count), [count]

        def kill(event: str, arguments: tuple, left: list[int] = left) -> bool:
            left[0] -= event == "os.rename"
            return left[0] < 0

        assert run_until_killed(lambda out=out: work(out), kill) == 137, count
        assert not (out / "panoptic.json").exists()
        finished = work(out, resume=True)
        resumed.add(len(finished))
        assert {path: s for path, s in sums(out).items() if not path.endswith(".tmp")} == whole, count
        assert not (out / JOURNAL).exists()
    assert resumed == {0, 1, 2}
