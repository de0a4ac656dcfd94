"""The non-saturating logistic GAN loss and its gradient penalty, over one logit an image, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_generator_loss(fake: Tensor) -> Tensor:
    """−E log σ(D(G(z))) (Goodfellow et al. 2014, non-saturating)."""
    return F.softplus(-fake.float()).mean()


def logistic_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−E log σ(D(x)) − E log(1 − σ(D(G(z))))."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def r1_penalty(real: Tensor, logits: Tensor) -> Tensor:
    """E ‖∇ₓ D(x)‖² (Mescheder et al. 2018), without its weight γ / 2.

    Args:
        real: [N, …] that requires grad.
        logits: [N], computed from `real`, each from its own image alone.
    """
    gradient, = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean()
