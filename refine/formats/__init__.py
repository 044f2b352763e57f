"""What others write and read: images, id-PNGs, COCO's JSONs, results of other models."""
