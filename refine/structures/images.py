"""A batch of images of different sizes, normalised and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class ImageBatch:
    """B images in one tensor, padded with zeros (the mean colour) on the right and at the bottom.

    Attributes:
        tensor: Tensor[B, 3, H, W] float, normalised; H and W are multiples of the model's divisor.
        sizes: (height, width) of each image before padding, in pixels.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def from_images(
        cls,
        images: Sequence[Tensor],
        mean: Tensor,
        std: Tensor,
        divisor: int = 32,
        flip_channels: bool = False,
    ) -> ImageBatch:
        """Normalise images and pad them to one size.

        Args:
            images: B images, each Tensor[3, h, w] RGB, uint8 or float, 0-255, all on one device.
            mean: Tensor[3] float, 0-255, in the network's channel order (see `flip_channels`).
            std: Tensor[3] float, 0-255, in the network's channel order.
            divisor: H and W are rounded up to multiples of this number of pixels.
            flip_channels: whether the network expects BGR.

        Raises:
            ValueError: there is no image, or one is not Tensor[3, h, w].
        """
        if not images:
            raise ValueError("ImageBatch: no image given")
        for n, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(f"ImageBatch: image {n}: expected shape (3, h, w), got {tuple(image.shape)}")
        sizes = [(int(i.shape[1]), int(i.shape[2])) for i in images]
        frame = padded_size((max(s[0] for s in sizes), max(s[1] for s in sizes)), divisor)
        tensor = mean.new_zeros(len(images), 3, *frame)
        mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
        for n, image in enumerate(images):
            image = image.flip(0) if flip_channels else image
            tensor[n, :, : sizes[n][0], : sizes[n][1]] = (image.to(mean) - mean) / std
        return cls(tensor, sizes)


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Return (height, width) in pixels, each rounded up to a multiple of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor
