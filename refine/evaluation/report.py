"""Report of panoptic quality as tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from refine.errors import printable
from refine.files import write_json
from refine.structures import Category

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table


class ClassPQ(NamedTuple):
    """Panoptic quality of one class: PQ = SQ · RQ, each 0-1; `iou` is the summed IoU of the `tp` matches."""

    category: Category
    pq: float
    sq: float
    rq: float
    iou: float
    tp: int
    fp: int
    fn: int

    @property
    def present(self) -> bool:
        """Return whether the class occurs in ground truth or predictions, and thus counts in means."""
        return self.tp + self.fp + self.fn > 0


class ImagePQ(NamedTuple):
    """Panoptic quality of one image: mean PQ over its classes, and counts summed over them."""

    image_id: int | str
    file_name: str
    pq: float
    tp: int
    fp: int
    fn: int


class PQReport:
    """PQ, SQ and RQ of all classes, things, stuff, each class and each image.

    Args:
        classes: metrics of each class, by contiguous index.
        images: metrics of each image, in the order of evaluation.

    Attributes:
        notes: sentences that say how ground truth and predictions were matched, if not by ids.
    """

    def __init__(self, classes: Sequence[ClassPQ], images: Sequence[ImagePQ]) -> None:
        self.classes = list(classes)
        self.images = list(images)
        self.notes: list[str] = []

    def group(self, isthing: bool | None = None) -> dict[str, float]:
        """Return the means over present classes, pq, sq, rq (0-1), and their number n; zeros if there is none.

        Args:
            isthing: True for things, False for stuff, None for both.
        """
        classes = [c for c in self.classes if c.present and isthing in (None, c.category.isthing)]
        n = len(classes)
        return {
            "pq": sum(c.pq for c in classes) / n if n else 0.0,
            "sq": sum(c.sq for c in classes) / n if n else 0.0,
            "rq": sum(c.rq for c in classes) / n if n else 0.0,
            "n": n,
        }

    @property
    def pq(self) -> float:
        """Return PQ of all classes, 0-1."""
        return self.group()["pq"]

    def worst(self, count: int) -> list[ImagePQ]:
        """Return the `count` images of lowest PQ, worst first."""
        return sorted(self.images, key=lambda image: (image.pq, str(image.image_id)))[:count]

    def to_json(self) -> dict[str, Any]:
        """Return `All`, `Things`, `Stuff`, and `per_class` by category id; `notes` if there are any."""
        notes = {"notes": self.notes} if self.notes else {}
        return notes | {
            "All": self.group(),
            "Things": self.group(True),
            "Stuff": self.group(False),
            "per_class": {
                str(c.category.id): {
                    "pq": c.pq,
                    "sq": c.sq,
                    "rq": c.rq,
                    "name": c.category.name,
                    "isthing": int(c.category.isthing),
                    "iou": c.iou,
                    "tp": c.tp,
                    "fp": c.fp,
                    "fn": c.fn,
                }
                for c in self.classes
            },
        }

    def write(self, path: str | Path, **more: Any) -> None:
        """Write `to_json` and additional top-level fields to a JSON file, atomically."""
        write_json(path, self.to_json() | more, indent=1)

    def tables(self) -> list[Table]:
        """Return a summary table and a table with one row per present class, in percent."""
        from rich.table import Table  # where nothing is printed, its import is a sixth of the start
        from rich.text import Text

        summary = Table("", "PQ", "SQ", "RQ", "classes")
        for name, isthing in (("All", None), ("Things", True), ("Stuff", False)):
            group = self.group(isthing)
            summary.add_row(name, *(f"{100 * group[k]:.1f}" for k in ("pq", "sq", "rq")), str(group["n"]))
        detail = Table("class", "kind", "PQ", "SQ", "RQ", "TP", "FP", "FN")
        for c in sorted((c for c in self.classes if c.present), key=lambda c: (not c.category.isthing, -c.pq)):
            detail.add_row(
                Text(printable(c.category.name, 40)),  # Text is not parsed as markup
                "thing" if c.category.isthing else "stuff",
                *(f"{100 * v:.1f}" for v in (c.pq, c.sq, c.rq)),
                *(str(v) for v in (c.tp, c.fp, c.fn)),
            )
        for table in (summary, detail):
            for column in table.columns[1 if table is summary else 2 :]:
                column.justify = "right"
        return [summary, detail]
