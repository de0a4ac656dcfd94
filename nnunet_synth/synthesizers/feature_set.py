"""Features of two kinds at once, for a loss that looks through both: a classifier's and a segmentation network's."""

from __future__ import annotations

from torch import Tensor, nn


class FeatureSet(nn.Module):
    """What is at hand of both; each maps images [N, C, H, W] in [−1, 1] to a list of feature maps, shallow to deep.

    Args:
        classification: VGG19's (`perceptual.py`), or None.
        segmentation: of a network that segments such images, or None. It is handed in by those who know nnU-Net.
    """

    def __init__(self, classification: nn.Module | None = None, segmentation: nn.Module | None = None) -> None:
        super().__init__()
        self.classification = classification
        self.segmentation = segmentation

    def forward(self, image: Tensor) -> list[Tensor]:
        return [tap for part in (self.classification, self.segmentation) if part is not None for tap in part(image)]


def as_feature_set(features: nn.Module | None) -> FeatureSet:
    """Features of an unknown kind count as a classifier's."""
    return features if isinstance(features, FeatureSet) else FeatureSet(classification=features)
