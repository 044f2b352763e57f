"""Panoptic result: one segment id per pixel and a description of each segment."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from refine.structures.categories import Categories

if TYPE_CHECKING:
    from PIL import Image
    from supervision import Detections

    from refine.formats.image_like import ImageLike


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: value of its pixels in `PanopticResult.segment_ids`, 1..2^24-1, unique in the image.
        category_id: category id in the data set.
        isthing: True for an instance of a thing class, False for a region of a stuff class.
        score: confidence, 0-1; None for stuff from a semantic map without confidences.
        area: number of pixels.
        bbox: tight (x, y, width, height) in pixels.
        instance: index of the fused instance in the input of fusion; None for stuff and ground truth.
    """

    id: int
    category_id: int
    isthing: bool
    score: float | None
    area: int
    bbox: tuple[int, int, int, int]
    instance: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `segments_info` in a COCO panoptic JSON (plus `isthing` and `score`)."""
        entry = vars(self) | {"bbox": list(self.bbox), "iscrowd": 0}
        del entry["instance"]
        if entry["score"] is None:
            del entry["score"]
        return entry


@dataclass
class PanopticResult:
    """Panoptic segmentation of one image: the segment of every pixel and the class of every segment.

    Notebooks display it as a drawing. `save` and `overlay` import their code when called, so the record itself
    depends on neither file formats nor drawing.

    Attributes:
        segment_ids: Tensor[H, W] int32, 0 = void/unknown.
        segments: segments sorted by id; each id occurs in `segment_ids`.
        categories: categories of the model or data set; `category_id` is an id in them.
        path: path of the image file; None if the image was predicted from memory, or is unknown.

    Examples:
        >>> categories = refine.Categories([refine.Category(3, "cup", True)])
        >>> segment = Segment(id=1, category_id=3, isthing=True, score=0.9, area=2, bbox=(1, 0, 2, 1))
        >>> result = PanopticResult(torch.tensor([[0, 1, 1]]), [segment], categories)
        >>> [(result.name(segment), segment.area) for segment in result.segments]
        [('cup', 2)]
        >>> result.mask(1).tolist()
        [[False, True, True]]
    """

    segment_ids: Tensor
    segments: list[Segment]
    categories: Categories
    path: Path | None = None
    _by_id: dict[int, Segment] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_id = {s.id: s for s in self.segments}
        if len(self._by_id) != len(self.segments):
            raise ValueError("PanopticResult.segments: an id is used twice")

    def __len__(self) -> int:
        return len(self.segments)

    def segment(self, segment_id: int) -> Segment:
        """Return the segment with this id; raise KeyError if there is none."""
        return self._by_id[segment_id]

    def mask(self, segment_id: int) -> Tensor:
        """Return the pixels of one segment, or of void (0): Tensor[H, W] bool; raise KeyError if there is none."""
        if segment_id:
            self.segment(segment_id)
        return self.segment_ids == segment_id

    def name(self, segment: Segment) -> str:
        """Return the category name of a segment."""
        return self.categories[self.categories.index(segment.category_id)].name

    def to_coco(self, image_id: int | str = 1, file_name: str = "image.png") -> dict[str, Any]:
        """Return the entry of `annotations` in a COCO panoptic JSON.

        Args:
            image_id: id of the image.
            file_name: name of the id-PNG that encodes the segments.
        """
        infos = [segment.to_json() for segment in self.segments]
        return {"image_id": image_id, "file_name": file_name, "segments_info": infos}

    def save(
        self,
        path: str | Path,
        *,
        formats: str | Sequence[str] = ("coco",),
        image: ImageLike | None = None,
        mpp: float | None = None,
        file_name: str | None = None,
        image_id: int | str = 1,
    ) -> Path:
        """Write the result in COCO panoptic format (an id-PNG and a JSON), and in other formats beside it.

        Args:
            path: folder, in which panoptic.json, panoptic/NAME.png and the files of the other formats are written,
                as by `refine predict`; or PATH.png, next to which PATH.json is written, for COCO alone.
            formats: names of `refine predict --save`, as a list or separated by commas.
            image: image of any type that `Predictor` accepts; the formats overlay, csv and cutouts need it.
            mpp: micrometres per pixel; None stands for what the file `image` states, if it is one.
            file_name: name of the image, recorded in the files; NAME above is this name without its suffix. None
                stands for the name of the file that was predicted, or else of the file `image`, or else image.png.
            image_id: id of the image, recorded in the JSON.

        Returns:
            Path of the COCO JSON.

        Raises:
            RefineError: the files cannot be written, or would replace the result of another image, or a PNG or JSON
                that is no result; a format is unknown or its package is not installed.
            ValueError: a format needs the image and there is none, or its size differs from the result's.
        """
        from refine.formats.image_like import to_tensor
        from refine.formats.results.saver import ImageResult
        from refine.savers import save_result

        pixels = None if image is None else to_tensor(image)
        file = self.path or (Path(image) if isinstance(image, str | Path) else None)
        name = file_name or (file.name if file else "image.png")
        item = ImageResult(self, name, pixels, mpp, source=image)
        return save_result(item, path, formats, image_id, file, is_named=file_name is not None)

    def to_supervision(self) -> Detections:
        """Return the things as `supervision.Detections`: boxes, masks, scores, class indices and class names.

        Raises:
            RefineError: supervision is not installed.
        """
        from refine.formats.results.supervision import to_supervision

        return to_supervision(self)

    def overlay(self, image: ImageLike, *, labels: bool = True) -> Image.Image:
        """Draw the segments over the image and return a Pillow image.

        Args:
            image: image of any type that `Predictor` accepts, as large as the result.
            labels: whether to write the category names.

        Raises:
            ValueError: the sizes of image and result differ.
        """
        from PIL import Image

        from refine.drawing.overlay import overlay
        from refine.formats.image_like import to_tensor

        drawn = overlay(to_tensor(image), self, labels=labels)
        return Image.fromarray(drawn.permute(1, 2, 0).cpu().numpy())

    def _repr_png_(self) -> bytes:
        """Return the PNG that notebooks display: the segments over white."""
        content = io.BytesIO()
        white = torch.full((3, *self.segment_ids.shape), 255, dtype=torch.uint8)
        self.overlay(white).save(content, "PNG")
        return content.getvalue()

    def summary(self) -> str:
        """Return the number of things and of stuff classes as text."""
        things = sum(segment.isthing for segment in self.segments)
        return f"things: {things}, classes of stuff: {len(self) - things}"


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Encode segment ids as colours, as COCO does: id = R + 256 G + 65536 B.

    Args:
        ids: [H, W] integer, segment ids, 0..2^24-1.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    ids = ids.astype(np.uint32)
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)


def rgb_to_id(rgb: np.ndarray) -> np.ndarray:
    """Decode COCO colours, the inverse of `id_to_rgb`: [H, W, 3] uint8 -> [H, W] int32."""
    rgb = rgb.astype(np.int32)
    ids: np.ndarray = rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)
    return ids
