"""Losses between a generated and a real image, in feature space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# pix2pixHD, SPADE, SEAN: relu1_1 … relu5_1 of VGG19; the deeper the tap, the more it counts.
PERCEPTUAL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


def perceptual_loss(real: Sequence[Tensor], fake: Sequence[Tensor],
                    weights: Sequence[float] = PERCEPTUAL_WEIGHTS) -> Tensor:
    """Σ_l w_l ‖φ_l(x) − φ_l(x̂)‖₁ over feature taps φ_l, shallow to deep, each [N, C, H, W].

    With fewer taps than weights the deepest taps keep the largest weights. No gradient reaches the real features.
    """
    weights = list(weights)[len(weights) - len(real):]
    return torch.stack([weight * F.l1_loss(fake_tap.float(), real_tap.detach().float())
                        for weight, real_tap, fake_tap in zip(weights, real, fake, strict=True)]).sum()
