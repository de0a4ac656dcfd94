"""V2M: label and layout maps from noise, for label-conditioned synthesizers: the papers' baseline V2M2I."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nnunet_synth.mask_sources.source import MaskSource, MaskSourceConfig
from nnunet_synth.synthesizers.base import Batch
from nnunet_synth.synthesizers.gallery import overlay


class V2M(MaskSource):
    """Noise → probabilities of each label, then of each layout value, so that the anatomy goes on under a lesion."""

    name = "v2m"
    Config = MaskSourceConfig
    PRESETS = {
        "tiny": MaskSourceConfig(latent_size=32, num_mapping_layers=4, max_width=32, base_width=512,
                                 steps_per_depth=(150, 300, 300, 600), batch_sizes=(16,)),
        "default": MaskSourceConfig(),
        "paper": MaskSourceConfig(latent_size=512, max_width=512, base_width=8192,
                                  steps_per_depth=(94, 188, 188, 750, 1500, 6000, 12_000),
                                  batch_sizes=(128, 128, 128, 64, 32, 16, 8)),
    }

    @property
    def _values(self) -> list[list[int]]:
        """The labels, and the layout values; 0 first."""
        semantic = self.meta.semantic
        return [[0, *sorted(int(value) for value in classes)]
                for classes in (semantic.label_classes, semantic.layout_classes)]

    @property
    def num_channels(self) -> int:
        return sum(len(values) for values in self._values)

    def encode(self, batch: Batch) -> Tensor:
        """One-hot, -1 and 1."""
        one_hot = [batch[name][:, None] == torch.tensor(values, device=batch[name].device)[:, None, None]
                   for name, values in zip(("label", "layout"), self._values, strict=True)]
        return torch.cat(one_hot, dim=1).float() * 2 - 1

    def activate(self, raw: Tensor) -> Tensor:
        """Softmax over the labels and over the layout values, as -1 … 1."""
        return torch.cat([part.softmax(1) for part in self._split(raw)], dim=1) * 2 - 1

    def maps(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """[N, K, H, W] → label and layout, [N, H, W] int64: the most probable values."""
        label, layout = (torch.tensor(values, device=masks.device)[part.argmax(1)]
                         for part, values in zip(self._split(masks), self._values, strict=True))
        return label, layout

    def _split(self, masks: Tensor) -> tuple[Tensor, ...]:
        return masks.split([len(values) for values in self._values], dim=1)

    @property
    def num_classes(self) -> int:
        return len(self.meta.semantic)

    def classes(self, masks: Tensor) -> Tensor:
        """Semantic classes."""
        return self.meta.semantic.combine(*self.maps(masks))

    def pictures(self, masks: Tensor) -> list[np.ndarray]:
        return [overlay(np.zeros((*one.shape, 3), np.uint8), one, opacity=1.0)
                for one in self.classes(masks).cpu().numpy()]
