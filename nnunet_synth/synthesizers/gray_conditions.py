"""Label maps as gray pictures, CoSinGAN's condition: one gray value a class, exact in training, randomised afterwards.

"We set the pixel values of these three categories in the input conditions to 0, 128, and 255" (3.1.1); randomised
condition (RC, Eq. 10): V_background ∈ [0, δ_b], V_lung ∈ [128 − δ_l, 128 + δ_l], V_infection ∈ [255 − δ_i, 255] with
δ = 16, 16, 32, anew at every image scale. Here for n classes: values evenly spread from 0 to 255, and the same δ, less
from seven classes on, whose ranges would overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITE = 255
DELTA = 16


def gray_values(num_classes: int) -> list[int]:
    """The gray value of each class in [0, 255], background first; three classes have 0, 128, 255."""
    return [round(WHITE * number / (num_classes - 1)) for number in range(num_classes)]


def gray_ranges(num_classes: int) -> list[tuple[int, int]]:
    """(lowest, highest) randomised gray value of each class (Eq. 10)."""
    values = gray_values(num_classes)
    delta = min(DELTA, (values[1] - 1) // 3)        # the last range is 2 δ wide and its neighbour δ to its side
    return [(0, delta), *((value - delta, value + delta) for value in values[1:-1]), (WHITE - 2 * delta, WHITE)]


def draw_grays(num_scales: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """[num_scales, num_classes] uniform in the ranges, for each scale anew; on the generator's device."""
    device = generator.device
    low, high = torch.tensor(gray_ranges(num_classes), dtype=torch.float32, device=device).T
    return low + (high - low) * torch.rand(num_scales, num_classes, generator=generator, device=device)


def paint_classes(semantic: Tensor, grays: Tensor) -> Tensor:
    """[N, H, W] int64 classes → [N, 1, H, W] in [−1, 1], with the gray values [num_classes] in [0, 255]."""
    return (grays.to(semantic.device) / WHITE * 2 - 1)[semantic][:, None]
