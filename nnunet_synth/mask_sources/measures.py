"""Are masks from noise like the real ones? How much of each value they hold, and how varied they are."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synth.mask_sources.source import MaskSource
from nnunet_synth.synthesizers.base import SliceSource

NUM_MASKS = 256
BATCH_SIZE = 16


def measure_mask_source(source: MaskSource, slices: SliceSource, seed: int = 0,
                        num_masks: int = NUM_MASKS) -> dict[str, float]:
    """Compare about `num_masks` drawn masks with as many of augmented training slices; see `compare`."""
    rng = np.random.default_rng([seed, 23])
    real, drawn = [], []
    for _, masks in zip(range(0, num_masks, BATCH_SIZE), source.endless(seed, BATCH_SIZE), strict=False):
        batch = {name: tensor.to(masks.device) for name, tensor in source.sample(slices, BATCH_SIZE, rng).items()}
        real.append(source.classes(source.encode(batch)).cpu())
        drawn.append(source.classes(masks).cpu())
    return compare(torch.cat(real), torch.cat(drawn), source.num_classes)


def compare(real: Tensor, drawn: Tensor, num_classes: int) -> dict[str, float]:
    """Statistics of two sets of class maps, [N, H, W] int64 each.

    Returns:
        `share_distance`: half the sum over classes of |mean share of pixels, real − drawn|; 0 = alike, 1 = disjoint.
        `variety`: mean share of pixels in which two masks differ, drawn / real; near 0 = one mask again and again.
    """
    shares = [F.one_hot(maps, num_classes).float().mean((0, 1, 2)) for maps in (real, drawn)]
    differing = [float((maps != maps.roll(1, dims=0)).float().mean()) for maps in (real, drawn)]
    return {"share_distance": float((shares[0] - shares[1]).abs().sum() / 2),
            "variety": differing[1] / differing[0] if differing[0] else float("nan")}
