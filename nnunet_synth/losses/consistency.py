"""How far two predictions of the same pixels differ, and how sure a prediction is."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squared_difference(p: Tensor, q: Tensor, certain: Tensor | None = None) -> Tensor:
    """Mean of (p − q)² over all classes and over the pixels that are `certain`; 0 where none is.

    Of two exclusive classes that is the squared difference of the foreground's probability.

    Args:
        p, q: [B, C, …] probabilities.
        certain: [B, 1 or C, …] bool; None = all.
    """
    difference = (p - q).square()
    if certain is None:
        return difference.mean()
    certain = certain.expand_as(difference)
    return (difference * certain).sum() / certain.sum().clamp(min=1)


def entropy(p: Tensor, exclusive: bool) -> Tensor:
    """Natural entropy of [B, C, …] probabilities: [B, 1, …] of exclusive classes, [B, C, …] of regions."""
    own = -torch.xlogy(p, p)
    return own.sum(1, keepdim=True) if exclusive else own - torch.xlogy(1 - p, 1 - p)


def highest_entropy(num_heads: int, exclusive: bool) -> float:
    """Of `entropy`: ln C, or ln 2 of a region."""
    return math.log(num_heads if exclusive else 2)
