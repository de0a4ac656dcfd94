"""Where the regions of a mask meet, as one more channel of a generator's input (pix2pixHD §3.3, there of instances)."""

from __future__ import annotations

import torch
from torch import Tensor


def edge_map(mask: Tensor) -> Tensor:
    """[N, C, H, W] values → [N, 1, H, W] of the same dtype: 1 where a pixel differs from one of its four neighbours in
    any channel, else 0. So a border is two pixels wide, one on either side."""
    across = (mask[:, :, 1:] != mask[:, :, :-1]).any(1, keepdim=True)
    along = (mask[:, :, :, 1:] != mask[:, :, :, :-1]).any(1, keepdim=True)
    edges = torch.zeros_like(mask[:, :1], dtype=torch.bool)
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, :, :, 1:] |= along
    edges[:, :, :, :-1] |= along
    return edges.to(mask.dtype)
