"""Conversion of data sets in the formats of others to COCO panoptic format."""
