"""V2UM: unsupervised masks from noise, for UM2I's G₂ (Xing et al., *Less is More*, III.B.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from nnunet_synth.bounds import FRACTION, Bounds, bounded
from nnunet_synth.mask_sources.source import MaskSource, MaskSourceConfig
from nnunet_synth.superpixels import WHITE, quantise, scaled_num_segments, unsupervised_mask
from nnunet_synth.synthesizers.base import Batch, SliceSource
from nnunet_synth.synthesizers.gallery import to_gray
from nnunet_synth.synthesizers.mask_conditioned import GRAY_STEP, NUM_SEGMENTS

MASK_SETTINGS = ("gray_step", "num_segments", "compactness")    # what a source and its synthesizer must share


@runtime_checkable
class DrawsFromMasks(Protocol):
    """A synthesizer that draws from unsupervised masks and says itself which label it drew."""

    def from_masks(self, unsupervised_mask: Tensor,
                   generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """[N, C, H, W] float32 gray values in [0, 255] → image [N, C, H, W] float32 in the network's intensity space,
        label [N, H, W] int64 of the dataset, None where it has no label head. In eval mode, without gradients."""
        ...


@dataclass(frozen=True)
class V2UMConfig(MaskSourceConfig):
    """V2UM's hyper-parameters."""

    num_segments: int = bounded(512, NUM_SEGMENTS)               # M, in an image of 512 × 512
    gray_step: float = bounded(50.0, GRAY_STEP)                  # t, between gray values; 0 = not quantised (Table V)
    compactness: float = bounded(0.1, Bounds(low=0, high=1000))  # of SLIC
    unlabelled_share: float = bounded(0.5, FRACTION)  # of the training slices, where the fold has unlabelled ones


class V2UM(MaskSource):
    """Noise → unsupervised masks of C channels. It needs no label, so it learns from unlabelled slices, too."""

    name = "v2um"
    Config = V2UMConfig
    PRESETS = {
        "tiny": V2UMConfig(latent_size=32, num_mapping_layers=4, max_width=32, base_width=512,
                           steps_per_depth=(150, 300, 300, 600), batch_sizes=(16,), num_segments=8192,
                           gray_step=10.0),
        "default": V2UMConfig(),
        "paper": V2UMConfig(latent_size=512, max_width=512, base_width=8192,
                            # 8, 16, 16, 32, 32, 64, 64 epochs over 1500 montages
                            steps_per_depth=(94, 188, 188, 750, 1500, 6000, 12_000),
                            batch_sizes=(128, 128, 128, 64, 32, 16, 8), num_segments=128),
    }

    @property
    def num_channels(self) -> int:
        return len(self.meta.channel_names)

    def sample(self, slices: SliceSource, num_slices: int, rng: np.random.Generator) -> Batch:
        unlabelled = slices.unlabelled()
        number = 0 if unlabelled is None else int(rng.binomial(num_slices, self.config.unlabelled_share))
        parts = [super(V2UM, self).sample(source, count, rng)
                 for source, count in ((slices, num_slices - number), (unlabelled, number)) if count]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def encode(self, batch: Batch) -> Tensor:
        """Algorithm 1 on the image, gray values 0 … 255 as -1 … 1."""
        image = (batch["image"].float() + 1) / 2
        num_segments = scaled_num_segments(*image.shape[2:], self.config.num_segments)
        return unsupervised_mask(image, num_segments, self.config.gray_step, self.config.compactness) / WHITE * 2 - 1

    def activate(self, raw: Tensor) -> Tensor:
        """Nothing, as in StyleGAN."""
        return raw

    def unsupervised(self, masks: Tensor) -> Tensor:
        """[N, C, H, W] in [-1, 1] → gray values in [0, 255], multiples of t, at most floor(255 / t) + 1 of them.

        Rounded to the nearest level, not down: a network comes a little short of a level as often as it exceeds it.
        """
        gray = ((masks.float() + 1) / 2 * WHITE).clamp(0, WHITE)
        step = self.config.gray_step
        return gray if step == 0 else quantise(gray + step / 2, step)

    @property
    def num_classes(self) -> int:
        return int(WHITE // self._class_step) + 1

    @property
    def _class_step(self) -> float:
        return self.config.gray_step or 10.0    # levels to count where there are none

    def classes(self, masks: Tensor) -> Tensor:
        """The level of the first channel."""
        return (self.unsupervised(masks)[:, 0] / self._class_step).round().long().clamp(max=self.num_classes - 1)

    def pictures(self, masks: Tensor) -> list[np.ndarray]:
        gray = self.unsupervised(masks) / WHITE * 2 - 1
        return [to_gray(one) for one in gray.cpu().numpy()]
