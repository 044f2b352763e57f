"""Series of drawings in a folder, of which those of an earlier run do not stay beside the new ones."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.PngImagePlugin import PngImageFile

from refine.errors import printable
from refine.formats.result_files import remove

if TYPE_CHECKING:  # it would delay the evaluation of result files
    from torch import Tensor


@dataclass(frozen=True)
class Series:
    """Drawings of a command. Their comments name them, so that only they are taken for drawings of earlier runs.

    Attributes:
        folder: folder of the drawings.
        command: name of the command.
        subject: what they show or belong to, such as a model or a report.
    """

    folder: Path
    command: str
    subject: str

    def write(self, name: str, image: Tensor) -> Path:
        """Write a PNG and return its path.

        Args:
            name: path below the folder, with "/".
            image: Tensor[3, H, W] uint8 RGB.
        """
        from refine.drawing.overlay import write_image

        write_image(self.folder / name, image, self._start(name) + printable(self.subject))
        return self.folder / name

    def wrote(self, name: str, *, any_subject: bool = True) -> bool:
        """Return whether a file, named as in `write`, is a drawing of the command (of any subject or this one)."""
        comment, start = _comment(self.folder / name), self._start(name)
        return comment.startswith(start) if any_subject else comment == start + printable(self.subject)

    def remove(self, *, any_subject: bool = True) -> None:
        """Remove the drawings of earlier runs of the command; see `wrote`.

        Raises:
            WriteError: a drawing cannot be removed.
        """
        for path in sorted(self.folder.rglob("*.png")):
            if self.wrote(path.relative_to(self.folder).as_posix(), any_subject=any_subject):
                remove(path)

    def _start(self, name: str) -> str:
        """Return the first lines of a drawing's comment; those of a copy with another name differ."""
        return f"{printable(name)}\n{self.command}\n"


def worst_images(report: Path) -> Series:
    """Return the drawings of the images with the lowest PQ, by the path of the report."""
    return Series(report.parent / "worst", "refine evaluate", report.name)


def _comment(path: Path) -> str:
    """Return the comment of a PNG; "" if there is none, or no such file."""
    with suppress(OSError, ValueError, SyntaxError), PngImageFile(path) as image:  # of any size; not decoded
        return str(image.info.get("Comment", ""))
    return ""
