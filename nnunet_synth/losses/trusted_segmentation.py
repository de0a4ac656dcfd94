"""Segmentation losses that look at some pixels only: cross entropy and soft Dice where a label can be trusted.

Ignored pixels are left out of sums and counts. To multiply their logits by zero instead would make them examples of
the uniform distribution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5       # as nnU-Net


def trusted_cross_entropy(logits: Tensor, target: Tensor, trusted: Tensor) -> Tensor:
    """Mean cross entropy over the trusted pixels; 0 where there are none.

    Args:
        logits: [N, K, H, W].
        target: [N, H, W] int64 in [0, K).
        trusted: [N, H, W] bool.
    """
    each = F.cross_entropy(logits.float(), target, reduction="none")
    return (each * trusted).sum() / trusted.sum().clamp(min=1)


def trusted_soft_dice_loss(logits: Tensor, target: Tensor, trusted: Tensor) -> Tensor:
    """1 − soft Dice of the trusted pixels of the whole batch, mean over the foreground classes; arguments as above.

    A class that neither target nor prediction holds counts as found; 0 where K = 1.
    """
    probability = logits.float().softmax(1)[:, 1:] * trusted[:, None]
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:] * trusted[:, None]
    common = (probability * truth).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    return (1 - (2 * common + SMOOTH) / (total + SMOOTH)).sum() / max(1, len(total))


def trusted_segmentation_loss(logits: Tensor, target: Tensor, trusted: Tensor) -> Tensor:
    """Cross entropy + soft Dice, L_S of UM2I III.B."""
    return trusted_cross_entropy(logits, target, trusted) + trusted_soft_dice_loss(logits, target, trusted)
