"""External file formats: images, id-PNGs, COCO JSON files and results of other models."""
