"""Files that other software reads, made from panoptic results: one module per format."""
