"""Runs of `refine predict` in tests."""

import hashlib
import json

from refine.cli.main import main
from refine.inference.predictor import Predictor
from refine.structures import Categories, Category

CATEGORIES = Categories([Category(7, "thing", True, (220, 20, 60)), Category(9, "ground", False, (90, 90, 90))])


def run(checkpoint, source, out, *more):
    """Predict on the CPU; return the exit code."""
    return main(
        ["predict", str(source), "-o", str(out), "--checkpoint", checkpoint, "--device", "cpu", *map(str, more)]
    )


def files(out):
    """Return the SHA-256 of every file in a folder, by relative path."""
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()
    }


def content(out):
    return json.loads((out / "panoptic.json").read_text())


class Stop:
    """Patch of `Predictor.predict_raw` that raises an error at the n-th image."""

    def __init__(self, monkeypatch, n, error):
        self.left, self.error = n, error
        before = Predictor.predict_raw

        def predict_raw(predictor, images, min_score=0.0):
            self.left -= 1
            if self.left == 0:
                raise self.error
            return before(predictor, images, min_score)

        monkeypatch.setattr(Predictor, "predict_raw", predict_raw)
