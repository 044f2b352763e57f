"""Report of a data set check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from refine.errors import counted, printable

SHOWN = 20
"""Number of findings of one kind that the text lists; the JSON contains all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One error or warning.

    Attributes:
        kind: subject: "category", "image", "annotation", "segment", "image file", "PNG", "instance", "remap"
            or "file".
        file: path of the file.
        message: description of the problem, and the fix.
    """

    kind: str
    file: str
    message: str


@dataclass
class Tally:
    """Counts over a number of images.

    Attributes:
        total: number of images whose segments could be read.
        pixels: number of pixels of these images.
        void: number of pixels without a label.
        images, segments, crowds, area: by category id (after a remap), number of images with this category, of
            its segments without crowds, of its crowds and of its pixels.
    """

    total: int = 0
    pixels: int = 0
    void: int = 0
    images: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    crowds: Counter[int] = field(default_factory=Counter)
    area: Counter[int] = field(default_factory=Counter)

    def add(self, pixels: int, segments: Sequence[tuple[int, bool, int]]) -> None:
        """Add one image with its number of pixels and (category id, iscrowd, area) of each segment."""
        self.total += 1
        self.pixels += pixels
        self.void += pixels - sum(area for _, _, area in segments)
        self.images.update({category for category, _, _ in segments})
        for category, crowd, area in segments:
            (self.crowds if crowd else self.segments)[category] += 1
            self.area[category] += area

    def merge(self, other: Tally) -> None:
        self.total += other.total
        self.pixels += other.pixels
        self.void += other.void
        for name in ("images", "segments", "crowds", "area"):
            getattr(self, name).update(getattr(other, name))


@dataclass
class ClassRow:
    """Counts of one category, see `Tally`."""

    id: int
    name: str
    isthing: bool
    images: int
    segments: int
    crowds: int
    area: int


@dataclass
class Report:
    """Result of a data set check.

    Attributes:
        source: file or folder of the data set.
        errors: problems that make the data set, or one of its images, unusable or contradictory.
        warnings: usable but probably unintended properties.
        tally: counts over the data set.
        classes: counts of the categories used in training, after a remap if there is one.
        ranges: images of more than 8 bits whose files do not state the range of values, and the range estimated
            for each.
    """

    source: str
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    classes: list[ClassRow] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether there are no errors; warnings do not count."""
        return not self.errors

    def text(self) -> str:
        """Return a table of the classes, then the first `SHOWN` warnings and errors of each kind."""
        names = [printable(row.name, 40) for row in self.classes]
        width = max([5, *map(len, names)])
        lines = [f"{'class':<{width}}  kind  {'images':>9} {'segments':>9} {'crowds':>7} {'pixels':>15}"]
        for name, row in zip(names, self.classes, strict=True):
            kind = "thing" if row.isthing else "stuff"
            numbers = f"{row.images:>9,} {row.segments:>9,} {row.crowds:>7,} {row.area:>15,}"
            lines.append(f"{name:<{width}}  {kind} {numbers}")
        tally = self.tally
        void = f"{100 * tally.void / tally.pixels:.1f}% of the pixels are void" if tally.pixels else "no pixels"
        lines.append(f"{counted(tally.total, 'image')} with readable segments; {void}")
        if self.ranges:
            lines.append(
                f"{counted(len(self.ranges), 'image')} of more than 8 bits without a stated range of values, which "
                f"was estimated for each, as in training; first {printable(min(self.ranges))}"
            )
        for name, findings in (("warning", self.warnings), ("error", self.errors)):
            lines += ["", counted(len(findings), name)]
            groups: dict[str, list[Finding]] = {}
            for finding in findings:
                groups.setdefault(finding.kind, []).append(finding)
            for kind, group in groups.items():
                lines.append(f"  {kind} ({len(group):,})")
                lines += [f"    {printable(f'{finding.file}: {finding.message}')}" for finding in group[:SHOWN]]
                if len(group) > SHOWN:
                    lines.append(f"    … and {len(group) - SHOWN:,} more")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the whole report, as written by `refine check-data --out`."""
        return {
            "source": self.source,
            "ok": self.ok,
            "images": self.tally.total,
            "pixels": self.tally.pixels,
            "void_pixels": self.tally.void,
            "classes": [row.__dict__ for row in self.classes],
            "ranges": self.ranges,
            "errors": [_as_dict(finding) for finding in self.errors],
            "warnings": [_as_dict(finding) for finding in self.warnings],
        }


def _as_dict(finding: Finding) -> dict[str, str]:
    return {"kind": finding.kind, "file": finding.file, "message": finding.message}
