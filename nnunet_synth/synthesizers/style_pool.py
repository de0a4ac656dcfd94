"""The style code pool of SA-CPS (Eq. 1) and the averaged reference code that a mini-batch shares (Eq. 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_CODES = 4096
MIN_TARGET_PIXELS = 16      # at the features' resolution: a code must not be the mean of a few noisy pixels

Origin = tuple[str, int]    # (case id, slice index)


@dataclass(frozen=True)
class StyleCode:
    """What one labelled slice has to offer: codes [S, F] float32 and whether it has each class, [S] bool."""

    codes: Tensor
    presence: Tensor
    origin: Origin


class StylePool(nn.Module):
    """P = {Enc(x_i, y_i)}: rebuilt whenever a trainer starts, hence no part of the saved weights."""

    def __init__(self, num_classes: int, style_dim: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(0, num_classes, style_dim), persistent=False)
        self.register_buffer("presence", torch.zeros(0, num_classes, dtype=torch.bool), persistent=False)
        self.origins: list[Origin] = []

    def __len__(self) -> int:
        return len(self.origins)

    def fill(self, styles: Iterable[StyleCode]) -> None:
        """Replace the pool's content."""
        styles = list(styles)
        self.codes = torch.stack([style.codes for style in styles])
        self.presence = torch.stack([style.presence for style in styles])
        self.origins = [style.origin for style in styles]

    def draw(self, num_styles: int, generator: torch.Generator | None) -> Tensor:
        """[min(K, N)] int64 indices of K different codes, or of all of them in order when there are no more than K."""
        if len(self) <= num_styles:
            return torch.arange(len(self), device=self.codes.device)
        device = self.codes.device if generator is None else generator.device
        return torch.randperm(len(self), generator=generator, device=device)[:num_styles].to(self.codes.device)

    def average(self, indices: Tensor, how: str) -> tuple[Tensor, Tensor]:
        """SC_ref of Eq. 2.

        Args:
            indices: [K] the codes drawn.
            how: "paper" = the plain mean, into which an absent class's zeros are mixed; "present_only" = for each
                class the mean over those of the K that have it, or over the whole pool's where none of the K has it.

        Returns:
            codes [S, F] and [S] bool, whether the class has a style at all.
        """
        codes, presence = self.codes[indices], self.presence[indices]
        if how == "paper":
            return codes.mean(0), presence.any(0)
        drawn = _mean_where_present(codes, presence)
        everywhere = _mean_where_present(self.codes, self.presence)
        return torch.where(presence.any(0)[:, None], drawn, everywhere), self.presence.any(0)

    def sha256(self) -> str:
        """Of the list of (case id, slice index)."""
        return hashlib.sha256(json.dumps(self.origins).encode()).hexdigest()


def _mean_where_present(codes: Tensor, presence: Tensor) -> Tensor:
    """[N, S, F], [N, S] → [S, F]; zero where no code has the class."""
    weights = presence.to(codes.dtype)[..., None]
    return (codes * weights).sum(0) / weights.sum(0).clamp_min(1)
