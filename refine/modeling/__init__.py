"""The networks: images in, losses or predictions out."""
