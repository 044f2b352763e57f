"""One binary mask per object: ID/images/*.png with ID/masks/*.png, as in the 2018 Data Science Bowl."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from refine.data.convert.label_images import BACKGROUND
from refine.data.convert.shapes import encode
from refine.data.convert.source import ReadOptions, Region, Regions, Sample, Source, SourceClass
from refine.errors import RefineError
from refine.formats.image_list import SUFFIXES as IMAGE_SUFFIXES
from refine.formats.image_size import image_size
from refine.formats.label_image import SUFFIXES, read_labels


def recognise(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*/images")) and any(path.glob("*/masks"))


def read(path: Path, options: ReadOptions) -> Source:
    """List the folders of a data set; a pixel of a mask belongs to its object if it is not 0.

    Raises:
        RefineError: there is none, or a folder has no image or several.
    """
    samples = []
    for folder in sorted(p.parent for p in path.glob("*/images")):
        images = [p for p in sorted((folder / "images").iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
        if len(images) != 1:
            raise RefineError(f"{folder / 'images'}: expected one image, got {len(images)}; correct the folder")
        name = folder.name + images[0].suffix
        samples.append(Sample(name, images[0], folder / "masks", partial(_read, images[0], folder, options.name)))
    if not samples:
        raise RefineError(f"{path}: contains no ID/images; give the folder above those of the images")
    return Source([SourceClass(options.name)], samples, BACKGROUND)


def _read(image: Path, folder: Path, name: str) -> Regions:
    sizes = list(image_size(image, str(image)))
    regions = []
    files = [p for p in (folder / "masks").glob("*") if p.suffix.lower() in SUFFIXES]
    for file in sorted(files):
        values = read_labels(file)
        if values.shape not in sizes:
            raise RefineError(
                f"{file}: expected {sizes[-1][1]} × {sizes[-1][0]} pixels as in {image}, got {values.shape[1]} × "
                f"{values.shape[0]}; copy both again"
            )
        sizes = [values.shape]
        regions.append(Region(name, encode(values), file.name))
    return Regions(sizes[-1], regions)
