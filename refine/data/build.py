"""Construction of a data set from its config."""

from __future__ import annotations

from refine.data.coco_panoptic import CocoPanoptic
from refine.data.config import DatasetConfig, check_dataset_fields
from refine.data.loader import PanopticDataset
from refine.formats.raw import ImageOptions


def build_dataset(config: DatasetConfig, prefix: str = "data.") -> PanopticDataset:
    """Open one split of a data set.

    Args:
        config: format and files of the split.
        prefix: what precedes the names of the fields in error messages, such as "data.train." or "--".

    Raises:
        RefineError: a field is missing, or a file is missing or invalid.
    """
    check_dataset_fields(config, prefix)
    if config.kind == "cityscapes":
        from refine.data.cityscapes import Cityscapes

        return Cityscapes(str(config.root), str(config.split))
    dataset = CocoPanoptic(
        str(config.images),
        str(config.json),
        str(config.segments),
        remap=config.remap,
        instances=config.instances,
        options=ImageOptions(config.page, config.channel, config.range, exif=config.exif),
    )
    dataset.check_folders(f"{prefix}images, {prefix}segments")
    return dataset
