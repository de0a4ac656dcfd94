"""Decoders beside the network's own that see perturbed features of its encoder; they are trained, never deployed.

The perturbations are those of CCT (Ouali et al., CVPR 2020), each applied to every level that a U-Net hands over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.trainers.perturbations import channel_dropout

# ----------------------------------------------------------------------------------------------------------------------
# Perturbations: features z [B, C, *sp] of one level, foreground [B, 1, *sp] of the main decoder's answer -> z̃


def feature_noise(z: Tensor, foreground: Tensor) -> Tensor:
    """F-Noise: (z ⊙ N) + z with N ~ U(−0.3, 0.3)."""
    return z * (1 + 0.6 * (torch.rand_like(z) - 0.5))


def feature_drop(z: Tensor, foreground: Tensor) -> Tensor:
    """F-Drop: the most active pixels of each sample are hidden, those above γ ~ U(0.6, 0.9) of its maximum."""
    activity = z.detach().mean(1, keepdim=True)
    activity = activity - activity.amin(_spatial(z), keepdim=True)
    gamma = 0.6 + 0.3 * torch.rand(len(z), *[1] * (z.ndim - 1), device=z.device)
    return z * (activity < gamma * activity.amax(_spatial(z), keepdim=True))


def object_mask(z: Tensor, foreground: Tensor) -> Tensor:
    """Obj-Msk: what the main decoder takes for foreground is hidden."""
    return z * ~foreground


def context_mask(z: Tensor, foreground: Tensor) -> Tensor:
    """Con-Msk: all else is hidden."""
    return z * foreground


def _spatial(z: Tensor) -> tuple[int, ...]:
    return tuple(range(2, z.ndim))


# ----------------------------------------------------------------------------------------------------------------------
# The decoders


class AuxiliaryDecoders(nn.Module):
    """K decoders with weights of their own.

    Args:
        decoders: of freshly built nnU-Net networks.
        dropout: rate of the spatial dropout.
    """

    def __init__(self, decoders: Sequence[nn.Module], dropout: float) -> None:
        super().__init__()
        for decoder in decoders:
            del decoder.encoder                 # nnU-Net's decoders know the encoder that they were made for
            decoder.deep_supervision = False
            decoder.seg_layers[:-1].requires_grad_(False)       # not used then
        self.decoders = nn.ModuleList(decoders)
        kinds: list[Callable[[Tensor, Tensor], Tensor]] = [
            feature_noise, feature_drop, lambda z, _: channel_dropout(z, dropout), object_mask, context_mask]
        self.perturbations = [kinds[number % len(kinds)] for number in range(len(decoders))]

    def forward(self, features: Sequence[Tensor], foreground: Tensor) -> list[Tensor]:
        """Features of each level, the main decoder's foreground [B, *sp] → K × logits at full resolution."""
        levels = [F.interpolate(foreground[:, None].float(), z.shape[2:], mode="nearest-exact") > 0.5 for z in features]
        return [decoder([perturb(z, level) for z, level in zip(features, levels, strict=True)])
                for decoder, perturb in zip(self.decoders, self.perturbations, strict=True)]
