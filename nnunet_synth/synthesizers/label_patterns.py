"""The few distinct 5×5 neighbourhoods of a label map.

Whatever two 3×3 convolutions with a ReLU between them make of a label map depends, at each pixel, on the 5×5 labels
around it, and a label map has few distinct ones: almost all pixels lie inside a region or on a straight border. So
the two convolutions are evaluated once for each distinct neighbourhood, as two small matrix products, and gathered.

Zero padding is exact too: "outside" is one more symbol, whose one-hot vector is zero and around which, as a centre,
the hidden activation is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

INT64_MAX = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class LabelPatterns:
    """The distinct neighbourhoods of a label map [N, H, W] with S classes.

    Attributes:
        near: [P₃, 9] int64, the distinct 3×3 neighbourhoods (row-major); S = outside the image.
        wide: [P₅, 9] int64, the distinct 5×5 neighbourhoods, each as its nine 3×3 ones (rows of `near`).
        index: [N, H, W] int64, the row of `wide` at each pixel.
    """

    near: Tensor
    wide: Tensor
    index: Tensor
    num_classes: int

    def columns(self, dtype: torch.dtype) -> Tensor:
        """[P₃, S·9]: each 3×3 neighbourhood as a 3×3 convolution over the one-hot map sees it (`unfold`'s order)."""
        one_hot = F.one_hot(self.near, self.num_classes + 1)[..., :self.num_classes]
        return one_hot.movedim(-1, 1).flatten(1).to(dtype)

    @property
    def is_inside(self) -> Tensor:
        """[P₃] bool: the neighbourhood's centre lies inside the image."""
        return self.near[:, 4] < self.num_classes


def find_label_patterns(semantic: Tensor, num_classes: int) -> LabelPatterns:
    """The patterns of [N, H, W] int64 labels in 0 … num_classes − 1, in a fixed order."""
    padded = F.pad(semantic, (2, 2, 2, 2), value=num_classes)
    near_index, near = _distinct(_shifts(padded, (-1, 0, 1)), num_classes + 1)
    # Four overlapping 3×3 corners cover a 5×5 window, so they identify it.
    corners = _shifts(near_index, (-1, 1))
    index, _ = _distinct(corners, len(near))
    nine = torch.stack(_shifts(near_index, (-1, 0, 1)), dim=-1).flatten(0, -2)
    return LabelPatterns(near=near, wide=nine[_an_occurrence(index)], index=index, num_classes=num_classes)


def _shifts(image: Tensor, offsets: tuple[int, ...]) -> list[Tensor]:
    """The views [N, H−2, W−2] of [N, H, W] shifted by each pair of offsets in −1 … 1, row-major."""
    height, width = image.shape[1] - 2, image.shape[2] - 2
    return [image[:, 1 + down:1 + down + height, 1 + right:1 + right + width]
            for down in offsets for right in offsets]


def _distinct(digits: list[Tensor], base: int) -> tuple[Tensor, Tensor]:
    """Number the distinct tuples of digits in 0 … base − 1: (number at each pixel, [P, len(digits)] the tuples).

    The tuple is read as one integer in that base. Where this would overflow, what is read so far is renumbered first:
    exact for any number of classes.
    """
    code, bound = torch.zeros_like(digits[0]), 1
    for digit in digits:
        if bound > INT64_MAX // base:
            _, code = torch.unique(code, return_inverse=True)
            bound = code.numel()
        code, bound = code * base + digit, bound * base
    _, index = torch.unique(code, return_inverse=True)
    tuples = torch.stack([digit.flatten()[_an_occurrence(index)] for digit in digits], dim=-1)
    return index, tuples


def _an_occurrence(index: Tensor) -> Tensor:
    """[P]: for each number in `index`, the flat position of one pixel that has it."""
    flat = index.flatten()
    occurrence = flat.new_empty(int(flat.max()) + 1)
    return occurrence.scatter_(0, flat, torch.arange(len(flat), device=flat.device))
