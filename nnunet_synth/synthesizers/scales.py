"""The sizes of an image pyramid and the depth of the network at each: CoSinGAN, 2.1.1, Implementation details.

"A total of nine image scales … 32 × 32, 48 × 48, 64 × 64, 96 × 96, 128 × 128, 192 × 192, 256 × 256, 384 × 384, and
512 × 512. … the number of 2 × downsampling layers … (4, 4, 5, 5, 6, 6, 7, 7, 7)."
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_synth.errors import UserError

PUBLISHED = {32: 4, 48: 4, 64: 5, 96: 5, 128: 6, 192: 6, 256: 7, 384: 7, 512: 7}    # side in pixels: downsamplings


@dataclass(frozen=True)
class Scale:
    """One level of the pyramid.

    Attributes:
        height, width: of the image there, when the whole pyramid draws one training patch; multiples of 2^num_down.
        num_down: halvings of the resolution within the network of this level.
    """

    height: int
    width: int
    num_down: int

    def size_for(self, image_size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, int]:
        """(height, width) at this level when an image [H, W] is drawn: a pixel shows as much as in training."""
        return tuple(round_to(own * image / patch, 2 ** self.num_down) for own, image, patch in
                     zip((self.height, self.width), image_size, patch_size, strict=True))


def find_scales(patch_size: Sequence[int], max_scale: int | None = None) -> list[Scale]:
    """The levels that lead to a patch [H, W], coarsest first.

    The published list up to the first side that covers the patch; other patches multiply the list so that its last side
    is the patch's longer one. Sizes are rounded to what the network can halve, and a level that is no smaller than the
    one after it is left out.

    Args:
        max_scale: side at which the pyramid stops; what it draws is enlarged to the patch then.

    Raises:
        UserError: `max_scale` is no published side, or the patch does not reach it.
    """
    longer = max(patch_size)
    reached = next((side for side in PUBLISHED if side >= longer), max(PUBLISHED))
    last = reached if max_scale is None else max_scale
    if last not in PUBLISHED:
        raise UserError(f"max_scale {max_scale} is none of CoSinGAN's scales: choose one of "
                        f"{', '.join(str(side) for side in PUBLISHED if side <= reached)}")
    if last > reached:
        raise UserError(f"max_scale {max_scale} cannot be reached with patches of {' × '.join(map(str, patch_size))}: "
                        f"choose at most {reached}, or larger patches (--patch-size)")
    levels: list[Scale] = []
    for side in sorted((side for side in PUBLISHED if side <= last), reverse=True):
        factor = side / longer if last < reached else side / reached    # of the patch's own size
        size = [round_to(length * factor, 2 ** PUBLISHED[side]) for length in patch_size]
        if not levels or max(size) < max(levels[-1].height, levels[-1].width):
            levels.append(Scale(*size, PUBLISHED[side]))
    return levels[::-1]


def round_to(length: float, step: int) -> int:
    """The multiple of `step` next to `length`, at least one."""
    return max(1, round(length / step)) * step
