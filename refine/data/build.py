"""From a config to a data set."""

from __future__ import annotations

from refine.data.coco_panoptic import CocoPanoptic
from refine.data.config import DatasetConfig, check_dataset_fields
from refine.data.loader import PanopticDataset


def build_dataset(config: DatasetConfig, where: str = "data") -> PanopticDataset:
    """Open one split.

    Args:
        config: which.
        where: field of the config, for messages.

    Raises:
        RefineError: a field is missing, or the files cannot be used.
    """
    check_dataset_fields(config, where)
    if config.kind == "cityscapes":
        from refine.data.cityscapes import Cityscapes

        return Cityscapes(str(config.root), str(config.split))
    return CocoPanoptic(
        str(config.images),
        str(config.json),
        str(config.segments),
        remap=config.remap,
        instances=config.instances,
        exif=config.exif,
    )
