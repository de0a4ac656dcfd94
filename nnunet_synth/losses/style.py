"""How much a drawn image has the style of another one that it shows nothing of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def style_loss(reference: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Σ_l ‖μ(φ_l(x̂)) − μ(φ_l(r))‖² + ‖σ(φ_l(x̂)) − σ(φ_l(r))‖², means over the channels of the squared differences
    (Huang and Belongie, ICCV 2017, Eq. 13, as they compute it).

    Args:
        reference, fake: feature taps φ_l, each [N, C, h, w]; the two need not have the same size. No gradient reaches
            the reference's.
    """
    return torch.stack([F.mse_loss(of_fake, of_reference.detach())
                        for taps in zip(fake, reference, strict=True)
                        for of_fake, of_reference in zip(*map(_mean_and_deviation, taps), strict=True)]).sum()


def _mean_and_deviation(features: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(features.float(), dim=(2, 3), correction=0)
    return mean, (variance + 1e-5).sqrt()
