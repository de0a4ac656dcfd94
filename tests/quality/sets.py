"""Sets of images for tests, small and with known content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from nnunet_synth.quality.extractor import Extractor
from nnunet_synth.quality.image_set import ImageSet


def image_set(name: str, images: np.ndarray, labels: np.ndarray | None = None,
              cases: Sequence[str] | None = None) -> ImageSet:
    """From images [N, H, W] or [N, C, H, W]; by default every image is a case of its own."""
    images = images[:, None] if images.ndim == 3 else images
    cases = [f"{name}_{number}" for number in range(len(images))] if cases is None else list(cases)
    return ImageSet(name, images.astype(np.float32), labels, cases, f"made for a test ({name})")


class MeanAndDeviation(nn.Module):
    """Images [N, C, H, W] → mean and standard deviation of each quarter, [N, 8·C]: features that are easily checked."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))      # tells the device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = (side // 2 for side in images.shape[-2:])
        quarters = [images[..., down:down + height, right:right + width].flatten(2)
                    for down in (0, height) for right in (0, width)]
        return torch.cat([part for quarter in quarters for part in (quarter.mean(2), quarter.std(2))], 1)


def toy_extractor(name: str = "toy", scale: float = 1.0) -> Extractor:
    return Extractor(name, f"means and deviations × {scale:g}", MeanAndDeviation().eval(),
                     lambda images: images * scale)
