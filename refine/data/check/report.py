"""What a check of a data set has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from refine.errors import printable

SHOWN = 20
"""Findings of one kind that the text names; the JSON has all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes:
        kind: what it is about: "category", "image", "annotation", "segment", "picture", "PNG", "instance",
            "remap" or "file".
        file: where it is.
        message: what is wrong there, and the fix.
    """

    kind: str
    file: str
    message: str


@dataclass
class Tally:
    """What was counted in some images.

    Attributes:
        pictures, pixels, void: images whose segments could be read, their pixels, and those without label.
        images, segments, crowds, area: by category id (after a remap): images that show it, its
            segments without crowds, its crowds, its pixels.
    """

    pictures: int = 0
    pixels: int = 0
    void: int = 0
    images: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    crowds: Counter[int] = field(default_factory=Counter)
    area: Counter[int] = field(default_factory=Counter)

    def add(self, pixels: int, segments: Sequence[tuple[int, bool, int]]) -> None:
        """Count one image of so many pixels; of each segment category id, iscrowd and area."""
        self.pictures += 1
        self.pixels += pixels
        self.void += pixels - sum(area for _, _, area in segments)
        self.images.update({category for category, _, _ in segments})
        for category, crowd, area in segments:
            (self.crowds if crowd else self.segments)[category] += 1
            self.area[category] += area

    def merge(self, other: Tally) -> None:
        self.pictures += other.pictures
        self.pixels += other.pixels
        self.void += other.void
        for name in ("images", "segments", "crowds", "area"):
            getattr(self, name).update(getattr(other, name))


@dataclass
class ClassRow:
    """A category and what there is of it, see `Tally`."""

    id: int
    name: str
    isthing: bool
    images: int
    segments: int
    crowds: int
    area: int


@dataclass
class Report:
    """Result of a check.

    Attributes:
        source: the data set's file or folder.
        errors: what keeps the data set, or one of its images, from being used, or contradicts itself.
        warnings: what can be used but is seldom meant.
        tally: of everything.
        classes: of the categories that a training sees, after a remap if there is one.
    """

    source: str
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    classes: list[ClassRow] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No errors; warnings do not count."""
        return not self.errors

    def text(self) -> str:
        """A table of the classes, then errors and warnings by kind, of each kind the first `SHOWN`."""
        names = [printable(row.name, 40) for row in self.classes]
        width = max([5, *map(len, names)])
        lines = [f"{'class':<{width}}  kind  {'pictures':>9} {'segments':>9} {'crowds':>7} {'pixels':>15}"]
        for name, row in zip(names, self.classes, strict=True):
            kind = "thing" if row.isthing else "stuff"
            numbers = f"{row.images:>9,} {row.segments:>9,} {row.crowds:>7,} {row.area:>15,}"
            lines.append(f"{name:<{width}}  {kind} {numbers}")
        tally = self.tally
        void = f"{100 * tally.void / tally.pixels:.1f}% of the pixels" if tally.pixels else "nothing"
        lines.append(f"{tally.pictures:,} pictures whose segments could be read; {void} void")
        for name, findings in (("warnings", self.warnings), ("errors", self.errors)):
            lines += ["", f"{len(findings):,} {name}"]
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
        """Everything, as `refine check-data --out` writes it."""
        return {
            "source": self.source,
            "ok": self.ok,
            "pictures": self.tally.pictures,
            "pixels": self.tally.pixels,
            "void_pixels": self.tally.void,
            "classes": [row.__dict__ for row in self.classes],
            "errors": [_as_dict(finding) for finding in self.errors],
            "warnings": [_as_dict(finding) for finding in self.warnings],
        }


def _as_dict(finding: Finding) -> dict[str, str]:
    return {"kind": finding.kind, "file": finding.file, "message": finding.message}
