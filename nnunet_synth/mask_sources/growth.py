"""Progressive growing: which sizes a network passes through, and how a new one is faded in.

Karras et al., *Progressive Growing of GANs*, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from nnunet_synth.errors import UserError

SMALLEST = 4                    # pixels of the coarsest masks, where the image can be halved so often
LARGEST_COARSEST = 31           # one convolution cannot arrange more than this


@dataclass(frozen=True)
class Growth:
    """The sizes of a progressive network.

    Attributes:
        sizes: (height, width) of the masks of each depth, coarsest first, each twice the one before.
        magnification: an image is this much larger than the finest masks.
    """

    sizes: tuple[tuple[int, int], ...]
    magnification: int

    @classmethod
    def to(cls, image_size: Sequence[int], max_size: int) -> Growth:
        """Depth by image size: 256 × 256 grows in 7 depths from 4 × 4. An image larger than `max_size` is halved until
        it fits, and its masks are enlarged by the same factor.

        Raises:
            UserError: the image cannot be halved often enough.
        """
        height, width = image_size
        magnification = 1
        while max(height, width) > max_size and height % 2 == width % 2 == 0:
            height, width, magnification = height // 2, width // 2, magnification * 2
        sizes = [(height, width)]
        while min(height, width) >= 2 * SMALLEST and height % 2 == width % 2 == 0:
            height, width = height // 2, width // 2
            sizes.append((height, width))
        if max(sizes[0]) > max_size or max(sizes[-1]) > LARGEST_COARSEST or min(sizes[-1]) < SMALLEST:
            raise UserError(f"masks of {image_size[0]} × {image_size[1]} pixels cannot grow from about {SMALLEST} "
                            "pixels by doubling: choose a --patch-size with more factors of 2, e.g. 256 256")
        return cls(tuple(reversed(sizes)), magnification)

    def __len__(self) -> int:
        return len(self.sizes)


def fade_in(step: int, num_steps: int, share: float) -> float:
    """α of a depth: from 0 at its first step to 1 after a `share` of its steps."""
    return min(1.0, step / (share * num_steps)) if share > 0 else 1.0


def blend(coarse: Tensor, fine: Tensor, alpha: float) -> Tensor:
    """(1 − α)·coarse + α·fine, exactly one of them at α = 0 and 1."""
    return fine if alpha == 1 else coarse.lerp(fine, alpha)


def halve(x: Tensor, times: int = 1) -> Tensor:
    """[N, C, H, W] averaged over squares of 2^times pixels."""
    return F.avg_pool2d(x, 2 ** times) if times else x


def double(x: Tensor) -> Tensor:
    """[N, C, H, W], each pixel a square of 2 × 2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def faded(real: Tensor, alpha: float) -> Tensor:
    """Real masks as blurred as those of a half grown network: (1 − α)·(halved and doubled again) + α·real."""
    return real if alpha == 1 else blend(double(halve(real)), real, alpha)
