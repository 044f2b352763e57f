"""Images in which objects may be missing because of a model's limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from refine.errors import counted
from refine.structures import Prediction

REDUCED = 0.5
"""Resize factor below which small objects may be lost."""

IN_PREDICT = ("give --max-detections {}", "give --scale 1")
ELSEWHERE = ("give refine predict --max-detections {}", "give refine predict --scale 1")
IN_PYTHON = ("call predictor.limit_detections({})", "increase predictor.test_size")
"""Remedies for images with too many objects ({} is a higher limit), and for images that are reduced too far."""


@dataclass
class Limits:
    """Record of images in which objects may be missing.

    Attributes:
        most: maximum number of detections per image, `max_detections` of the network; None if there is none.
        resizable: whether another size of the network's input can be chosen, as a remedy.
        full: names of the images in which this number was reached.
        reduced: names of the images that are reduced to less than `REDUCED` of their size for the network.
    """

    most: int | None
    resizable: bool = True
    full: list[str] = field(default_factory=list)
    reduced: list[str] = field(default_factory=list)

    def add(self, name: str, prediction: Prediction, score_threshold: float) -> None:
        """Check one image.

        Args:
            name: name of the image for the remarks.
            prediction: prediction before fusion, at the size of the image.
            score_threshold: minimum score of the detections that are used, 0-1.
        """
        scores = prediction.instances.scores
        if self.most is not None and int((scores >= score_threshold).sum()) >= self.most:
            self.full.append(name)
        if prediction.scale < REDUCED:
            self.reduced.append(name)

    def merge(self, other: Limits) -> None:
        """Add the images of another record."""
        self.full += other.full
        self.reduced += other.reduced

    def remarks(self, remedies: tuple[str, str]) -> dict[str, str]:
        """Return at most one remark for each of `full` and `reduced`, by these names."""
        more, larger = remedies
        remarks = {}
        if self.full and self.most is not None:
            remarks["full"] = (
                f"{_count(self.full)} full: {self.most} objects were found, the maximum, and there may be more; "
                f"{more.format(4 * self.most)}, or cut the image into tiles"
            )
        if self.reduced:
            remarks["reduced"] = (
                f"{_count(self.reduced)} reduced to less than {REDUCED:.0%} of the size for the network; small "
                f"objects may be missed; {f'{larger}, or ' if self.resizable else ''}cut the image into tiles"
            )
        return remarks


def _count(names: list[str]) -> str:
    """Return the subject and verb of a remark about images; names the first image."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {counted(len(names) - 1, 'more image')} are"
