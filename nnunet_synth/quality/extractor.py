"""A network that turns images of any resolution into feature vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS_PER_BATCH = 2 ** 22      # at the network's input: 4 images of 1024², 256 of 128²
MAX_BATCH = 64


@dataclass(frozen=True)
class Extractor:
    """
    Attributes:
        name: a key, "imagenet".
        description: which network with which weights, for every output.
        network: [N, C', r, r] → features [N, D]; in eval mode.
        prepare: images [N, C, H, W] as they are in the files → what the network takes, [N, C', H, W].
        native: pixels a side that the network was trained on; None where that means nothing.
    """

    name: str
    description: str
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]
    native: int | None = None

    @torch.no_grad()
    def __call__(self, images: np.ndarray, resolution: int) -> np.ndarray:
        """Features [N, D] float32 of images [N, C, H, W], resized to resolution × resolution (squares or not)."""
        assert not self.network.training
        device = next(self.network.parameters()).device
        prepared = self.prepare(torch.tensor(images, device=device))
        features = self.network(resize_batch(prepared, resolution))
        return features.flatten(1).float().cpu().numpy()


def resize_batch(images: Tensor, resolution: int) -> Tensor:
    """[N, C, H, W] → [N, C, resolution, resolution]: bilinear, and smoothed where it shrinks."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)


def batch_size_for(resolution: int) -> int:
    """Images at a time, so that the memory of a batch does not depend on the resolution."""
    return max(1, min(MAX_BATCH, PIXELS_PER_BATCH // resolution ** 2))
