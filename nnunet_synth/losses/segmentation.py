"""Pseudo-labels: from logits to the targets of nnU-Net's losses, and to the labels that a synthesizer draws from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PseudoLabels:
    """How a dataset's labels are written as targets.

    A target is [B, 1, …] int64 labels, or [B, R, …] bool for region-based training. Pseudo-labels hold no ignored
    pixels.

    Attributes:
        threshold: τ of SA-CPS Eq. 9. Softmax labels take the argmax; with a single foreground class and τ ≠ 0.5, that
            class where p ≥ τ.
        regions: the labels that each region unites, or None for softmax labels.
        region_order: label that each region writes when regions become a label map, later ones over earlier ones.
        has_ignore_channel: region targets carry a last channel of ignored pixels (nnU-Net's convention).
    """

    threshold: float = 0.5
    regions: Sequence[Sequence[int]] | None = None
    region_order: Sequence[int] | None = None
    has_ignore_channel: bool = False

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B, heads, …] logits → probabilities of the exclusive classes, or of each region; not in half precision."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return logits.softmax(1) if self.regions is None else logits.sigmoid()

    def from_logits(self, logits: Tensor) -> Tensor:
        """Eq. 9: y = 1(p ≥ τ) from [B, heads, …] logits; detached."""
        logits = logits.detach().float()
        if self.regions is not None:
            return logits.sigmoid() >= self.threshold
        if self.threshold == 0.5:
            return logits.argmax(1, keepdim=True)
        assert logits.shape[1] == 2, "a threshold other than 0.5 is defined for one foreground class"
        return (logits.softmax(1)[:, 1:] >= self.threshold).long()

    def to_labels(self, target: Tensor) -> Tensor:
        """Target → [B, …] int64 label map, which the synthesizer draws from."""
        if self.regions is None:
            return target[:, 0].long()
        labels = torch.zeros_like(target[:, 0], dtype=torch.int64)
        for region, label in enumerate(self.region_order):
            labels[target[:, region]] = label
        return labels

    def from_labels(self, labels: Tensor) -> Tensor:
        """[B, …] int64 label map → target."""
        if self.regions is None:
            return labels[:, None]
        return torch.stack([torch.isin(labels, torch.as_tensor(region, device=labels.device))
                            for region in map(_as_sequence, self.regions)], 1)

    def for_outputs(self, target: Tensor, outputs: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The target at the resolution of each output, as nnU-Net's deep supervision wants it."""
        if self.regions is not None and self.has_ignore_channel:
            target = torch.cat([target, torch.zeros_like(target[:, :1])], 1)
        if isinstance(outputs, Tensor):
            return target
        return [_resize_nearest(target, output.shape[2:]) for output in outputs]


def _as_sequence(region: int | Sequence[int]) -> Sequence[int]:
    return (region,) if isinstance(region, int) else region


def _resize_nearest(target: Tensor, size: torch.Size) -> Tensor:
    """As DownsampleSegForDSTransform, which makes the targets of the labelled stream."""
    if target.shape[2:] == size:
        return target
    return F.interpolate(target.float(), tuple(size), mode="nearest-exact").to(target.dtype)


def foreground_fraction(labels: Tensor) -> Tensor:
    """Share of foreground in a label map."""
    return (labels > 0).float().mean()


def agreement(labels_1: Tensor, labels_2: Tensor) -> Tensor:
    """Dice of the two peers' foreground, where the class counts too; 1 when neither sees any."""
    same = ((labels_1 == labels_2) & (labels_1 > 0)).sum()
    total = (labels_1 > 0).sum() + (labels_2 > 0).sum()
    return torch.where(total > 0, 2 * same / total.clamp(min=1), 1.0)
