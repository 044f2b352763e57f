"""Networks, from images to losses or predictions."""
