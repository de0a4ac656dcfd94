"""CS2's label head (MICCAI 2022, §2.3): several small networks look at the features that a generator has of a pixel,
and vote on its label.

A classifier is published as an MLP on all features of a pixel, which are upsampled (nearest) to the size of the image
and squashed by tanh. Its first layer is linear, and so the same as a sum of layers on each resolution: they run there,
on up to 256 × fewer pixels, and what they give is upsampled. The result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelClassifier(nn.Module):
    """One MLP: Linear, ReLU, batch norm, twice; Linear.

    Args:
        feature_channels: of each map of features.
        num_outputs: logits of a pixel.
        hidden: widths of the two hidden layers.
    """

    def __init__(self, feature_channels: Sequence[int], num_outputs: int, hidden: tuple[int, int] = (128, 32)) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(channels, hidden[0], 1, bias=False) for channels in feature_channels)
        self.bias = nn.Parameter(torch.zeros(hidden[0]))
        self.rest = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(hidden[0]), nn.Linear(*hidden),
                                  nn.ReLU(), nn.BatchNorm1d(hidden[1]), nn.Linear(hidden[1], num_outputs))
        self._draw_first_layer(sum(feature_channels))

    def _draw_first_layer(self, fan_in: int) -> None:
        """As the one linear layer that it is."""
        bound = fan_in ** -0.5
        for layer in self.first:
            nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[N, H, W, outputs] logits of all pixels.

        Args:
            features: [N, C_k, H_k, W_k], squashed, coarsest first; the last ones have the size of the image, and each
                size is a multiple of the one before.
        """
        total = None
        for layer, level in zip(self.first, features, strict=True):
            projected = layer(level)
            if total is not None:
                projected = projected + _upsampled(total, projected.shape[2:])
            total = projected
        hidden = total.movedim(1, -1) + self.bias
        return self.rest(hidden.flatten(0, 2)).unflatten(0, hidden.shape[:3])

    def at(self, features: Sequence[Tensor], pixels: Tensor) -> Tensor:
        """[P, outputs] logits of some pixels.

        Args:
            features: as for `forward`.
            pixels: [P, 3] int64 (sample, row, column) in the image.
        """
        height, width = features[-1].shape[2:]
        sample, row, column = pixels.unbind(1)
        total = self.bias
        for layer, level in zip(self.first, features, strict=True):
            rows, columns = level.shape[2:]
            total = total + layer(level)[sample, :, row * rows // height, column * columns // width]
        return self.rest(total)


class PixelClassifierEnsemble(nn.Module):
    """Classifiers that differ in their weights from the start, and that share nothing.

    Args:
        feature_channels: of each map of features, coarsest first.
        num_labels: labels are 0 … num_labels − 1.
        num_slices: label maps that a pixel's features tell of (slices stacked as channels, 2.5D).
        num_members: classifiers.
    """

    def __init__(self, feature_channels: Sequence[int], num_labels: int, num_slices: int = 1, num_members: int = 10,
                 hidden: tuple[int, int] = (128, 32)) -> None:
        super().__init__()
        self.num_labels, self.num_slices = num_labels, num_slices
        self.members = nn.ModuleList(PixelClassifier(feature_channels, num_slices * num_labels, hidden)
                                     for _ in range(num_members))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[N · num_slices, H, W] int64: the label that most members see, of equally many the lowest."""
        squashed = [level.tanh() for level in features]
        votes = 0
        for member in self.members:     # one by one: ten times the hidden layer at full resolution is a lot of memory
            logits = member(squashed).unflatten(-1, (self.num_slices, self.num_labels))
            votes = votes + F.one_hot(logits.argmax(-1), self.num_labels).to(torch.uint8)
        return winner(votes).movedim(-1, 1).flatten(0, 1)

    def logits_at(self, features: Sequence[Tensor], pixels: Tensor) -> Tensor:
        """[members, P, num_slices, labels] of some pixels, for training: each member has its own.

        Args:
            pixels: [members, P, 3] int64 (sample, row, column).
        """
        squashed = [level.tanh() for level in features]
        logits = torch.stack([member.at(squashed, own) for member, own in zip(self.members, pixels, strict=True)])
        return logits.unflatten(-1, (self.num_slices, self.num_labels))


def winner(votes: Tensor) -> Tensor:
    """[…] int64 from votes [..., labels]: the label with most of them, of equally many the lowest."""
    return votes.argmax(-1)     # documented to be the first of equal ones


def _upsampled(features: Tensor, size: torch.Size) -> Tensor:
    return features if features.shape[2:] == size else F.interpolate(features, size, mode="nearest")
