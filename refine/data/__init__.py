"""From files on disk to images and targets."""
