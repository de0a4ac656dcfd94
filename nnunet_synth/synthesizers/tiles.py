"""The slices of a montage as channels of one image (2.5D), and back."""

from __future__ import annotations

import torch
from torch import Tensor


def stack_tiles(montage: Tensor, rows: int, columns: int) -> Tensor:
    """[N, C, rows · H, columns · W] → [N, rows · columns · C, H, W]: the channels of the first slice (top left), of the
    second (to its right), and so on."""
    height, width = montage.shape[2] // rows, montage.shape[3] // columns
    return montage.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5).flatten(1, 3)


def join_tiles(stacked: Tensor, rows: int, columns: int) -> Tensor:
    """[N, rows · columns · C, H, W] → [N, C, rows · H, columns · W]: undoes `stack_tiles`."""
    tiles = stacked.unflatten(1, (rows, columns, -1))
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def number_tiles(height: int, width: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """[height, width] int64: the number of the slice that each pixel of a montage belongs to, row by row from 0."""
    row = torch.arange(height, device=device) * rows // height
    column = torch.arange(width, device=device) * columns // width
    return row[:, None] * columns + column
