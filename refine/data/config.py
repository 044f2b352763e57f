"""How training pictures are varied. Nothing here imports torch, so that the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AugmentConfig:
    """Random changes of training pictures, in the order in which they are made.

    Attributes:
        copy_paste: probability that things of another picture are pasted in.
        short: short sides in pixels, one is drawn and the picture resized to it (800 for R50).
        long: the long side does not exceed it, before `jitter`.
        jitter: the drawn size is multiplied by a factor from this range (large-scale jitter).
        flip: probability of a horizontal flip.
        flip_vertical, rotate: probability of a vertical flip, and of a turn by 90° (pictures without an
            up, such as cells).
        crop: (height, width) of a random crop; smaller pictures are left, the batch pads them.
        color: strength 0-1 of random brightness, contrast, saturation and (a fifth of it) hue.
        min_area: things of fewer pixels after all this become void.
    """

    copy_paste: float = 0.0
    short: list[int] = field(default_factory=lambda: [800])
    long: int = 1333
    jitter: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    flip_vertical: float = 0.0
    rotate: float = 0.0
    crop: tuple[int, int] | None = None
    color: float = 0.0
    min_area: int = 4
