"""What V2UM and V2M share: a StyleGAN over masks, its training depth by depth, and drawing from noise.

Known deviations from StyleGAN: no style mixing; the averaged generator of a depth, not its last one, goes on into the
next depth; the mean style that truncation pulls to is computed from the finished mapping network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.bounds import BATCH, DEPTH, FRACTION, LEARNING_RATE, SIDE, STEPS, WEIGHT, Bounds, Settings, bounded
from nnunet_synth.errors import UserError
from nnunet_synth.losses.logistic import logistic_discriminator_loss, logistic_generator_loss, r1_penalty
from nnunet_synth.mask_sources.growth import Growth, fade_in, faded, halve
from nnunet_synth.mask_sources.progressive_discriminator import ProgressiveDiscriminator
from nnunet_synth.mask_sources.style_generator import StyleGenerator
from nnunet_synth.synthesizers.base import Batch, Slices, SliceSource, Stage, SynthMeta, Terms, Trainable
from nnunet_synth.synthesizers.gallery import write_gallery

if TYPE_CHECKING:
    import torch

NUM_LATENTS = 4096          # whose mean style truncation pulls to


@dataclass(frozen=True)
class MaskSourceConfig(Settings):
    """The hyper-parameters of both mask sources; the defaults are those of the preset "default"."""

    latent_size: int = bounded(256, Bounds(low=1, high=8192))    # of z and of w
    num_mapping_layers: int = bounded(8, DEPTH)
    max_width: int = bounded(256, Bounds(low=1, high=8192))      # channels of a depth d: base_width / 2^d, at most this
    base_width: int = bounded(4096, Bounds(low=2, high=2**17))
    max_size: int = bounded(256, SIDE)  # larger images get masks of half, a quarter, … their size, enlarged
    group_size: int = bounded(4, BATCH)                          # of the minibatch standard deviation
    truncation: float = bounded(0.7, FRACTION)  # ψ: how far from the mean style a mask may be; 1 = no truncation

    steps_per_depth: tuple[int, ...] = bounded((400, 800, 800, 1500, 3000, 6000, 12_000), STEPS)  # coarsest first
    batch_sizes: tuple[int, ...] = bounded((64, 64, 64, 32, 32, 16, 8), BATCH)
    fade_in: float = bounded(0.5, FRACTION)                      # share of a depth's steps over which it is faded in
    learning_rate: float = bounded(3e-3, LEARNING_RATE)          # of both networks
    mapping_learning_rate: float = bounded(0.01, LEARNING_RATE)  # of the mapping network, relative to it
    r1_weight: float = bounded(10.0, WEIGHT)                     # γ
    r1_every: int = bounded(16, STEPS)                           # steps; the penalty is multiplied by as much ("lazy")


class MaskSource(Trainable):
    """Draws masks from noise.

    Inside, masks are [N, K, H, W] in [-1, 1]. Subclasses say what the K channels are: `num_channels`, `encode` and
    `activate`; and what a person sees in them: `classes`, `num_classes` and `pictures`.
    """

    def __init__(self, meta: SynthMeta, config: MaskSourceConfig) -> None:
        super().__init__(meta, config)
        self.growth = Growth.to(meta.patch_size, config.max_size)
        widths = [min(config.max_width, config.base_width // 2 ** (depth + 1)) for depth in range(len(self.growth))]
        coarsest = self.growth.sizes[0]
        self.generator = StyleGenerator(self.num_channels, coarsest, widths, config.latent_size,
                                        config.num_mapping_layers, config.mapping_learning_rate)
        # Part of the model, because it goes on from depth to depth; not of what is exported.
        self.discriminator = ProgressiveDiscriminator(self.num_channels, coarsest, widths, config.group_size)
        self.register_buffer("progress", torch.tensor([1.0, 1.0]))      # depth and α that are trained now

    @classmethod
    def build(cls, meta: SynthMeta, config: MaskSourceConfig) -> MaskSource:
        return cls(meta, config)

    # -- what a subclass provides ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def num_channels(self) -> int:
        """K."""

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """The masks of real slices: a batch as `batch_of` gives it → [N, K, H, W] in [-1, 1]."""

    @abstractmethod
    def activate(self, raw: Tensor) -> Tensor:
        """What the generator's last layer gives → [N, K, …]."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Of `classes`."""

    @abstractmethod
    def classes(self, masks: Tensor) -> Tensor:
        """[N, K, H, W] → [N, H, W] int64: which of `num_classes` values a pixel has."""

    @abstractmethod
    def pictures(self, masks: Tensor) -> list[np.ndarray]:
        """[N, K, H, W] → N pictures, uint8 [H, W, 3]."""

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def divisor(self) -> int:
        return 8

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        """One stage a depth; `perceptual` is not used."""
        depths = range(1, len(self.growth) + 1)
        wanted = [_at(self.config.steps_per_depth, depth) for depth in depths]
        if steps is not None:
            if steps < len(depths):
                raise UserError(f"--steps {steps}: {self.name} needs at least one step for each of its {len(depths)} "
                                "depths")
            ends = 1 + np.arange(len(depths)) + np.round(np.cumsum(wanted) / sum(wanted) * (steps - len(depths)))
            wanted = np.diff(ends, prepend=0).astype(int).tolist()
        return [MaskStage(self, depth, number) for depth, number in zip(depths, wanted, strict=True)]

    def sample(self, slices: SliceSource, num_slices: int, rng: np.random.Generator) -> Batch:
        """Training slices, on the CPU."""
        return self.batch_of(slices.sample(num_slices, tuple(self.meta.patch_size), rng))

    def batch_of(self, slices: Slices) -> Batch:
        """image [N, C, H, W] in [-1, 1], label and layout [N, H, W]."""
        return {"image": self.to_unit(slices.image).masked_fill(~slices.valid[:, None], -1), "label": slices.label,
                "layout": slices.layout}

    def finest(self, masks: Tensor) -> Tensor:
        """[N, K, H, W] of the images' size → of the finest depth; one pixel of many is taken, none is mixed."""
        every = self.growth.magnification
        return masks[..., ::every, ::every]

    # -- saved weights -----------------------------------------------------------------------------------------------

    def export_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().export_state().items()
                if not name.startswith("discriminator.")}

    def load_exported(self, state: dict[str, Tensor]) -> None:
        self.discriminator = None
        super().load_exported(state)

    # -- drawing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def mean_style(self) -> Tensor:
        """[1, latent_size] E w, over always the same latents."""
        fixed = torch.Generator().manual_seed(0)
        latents = torch.randn(NUM_LATENTS, self.config.latent_size, generator=fixed)
        return self.generator.mapping(latents.to(self.progress.device)).mean(0, keepdim=True)

    @torch.no_grad()
    def draw(self, num_masks: int, generator: torch.Generator, mean_style: Tensor | None = None) -> Tensor:
        """[num_masks, K, H, W] in [-1, 1], of the patch's size, each from its own noise.

        Args:
            generator: of all the noise; on the device of the weights.
            mean_style: of `mean_style()`, which needs a moment; for those who draw often.
        """
        latent = torch.randn(num_masks, self.config.latent_size, generator=generator, device=self.progress.device)
        mean_style = self.mean_style() if mean_style is None else mean_style
        style = truncated(self.generator.mapping(latent), mean_style, self.config.truncation)
        depth, alpha = self.progress.tolist()
        masks = self.activate(self.generator(style, int(depth), alpha, generator)).float()
        return F.interpolate(masks, tuple(self.meta.patch_size), mode="nearest")

    def endless(self, seed: int, batch_size: int) -> Iterator[Tensor]:
        """Batches of `draw`, one after another."""
        generator = torch.Generator(self.progress.device).manual_seed(seed)
        mean_style = self.mean_style()
        while True:
            yield self.draw(batch_size, generator, mean_style)


def truncated(style: Tensor, mean_style: Tensor, psi: float) -> Tensor:
    """w′ = w̄ + ψ (w − w̄)."""
    return mean_style + psi * (style - mean_style)


def draw_mask_gallery(source: MaskSource, conditions: Slices, target: Path, seed: int = 0) -> None:
    """PNG of real | drawn masks; they have nothing to do with each other. The same noise each time."""
    device = source.progress.device
    real = source.encode(source.batch_of(conditions.to(device)))
    drawn = next(source.endless(seed, len(real)))
    write_gallery(zip(source.pictures(real), source.pictures(drawn), strict=True), ("real", "drawn"), target)


# ----------------------------------------------------------------------------------------------------------------------
# Training


class MaskStage(Stage):
    """One depth: non-saturating logistic loss, R1 now and then, the new layers faded in."""

    betas = (0.0, 0.99)

    def __init__(self, source: MaskSource, depth: int, num_steps: int) -> None:
        self.source, self.depth, self.num_steps = source, depth, num_steps
        self.config = source.config
        self.name = "{}x{}".format(*source.growth.sizes[depth - 1])
        self.batch_size = _at(self.config.batch_sizes, depth)
        self.generator, self.discriminator = source.generator, source.discriminator
        self.step = 0

    @property
    def alpha(self) -> float:
        return 1.0 if self.depth == 1 else fade_in(self.step, self.num_steps, self.config.fade_in)

    def begin_step(self, step: int) -> None:
        self.step = step
        self._note_progress(self.alpha)

    def on_end(self) -> None:
        self._note_progress(1.0)

    def _note_progress(self, alpha: float) -> None:
        self.source.progress.copy_(torch.tensor([float(self.depth), alpha]))

    def learning_rates(self, step: int) -> tuple[float, float]:
        return self.config.learning_rate, self.config.learning_rate

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        return self.source.sample(slices, self.batch_size, rng)

    def real_masks(self, batch: Batch) -> Tensor:
        """Of this depth, as blurred as what the generator draws now."""
        masks = self.source.finest(self.source.encode(batch))
        return faded(halve(masks, len(self.source.growth) - self.depth), self.alpha)

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        latent = torch.randn(len(batch["image"]), self.config.latent_size, device=batch["image"].device)
        fake = self.source.activate(self.generator(self.generator.mapping(latent), self.depth, self.alpha))
        batch["fake"] = fake.detach()
        loss = logistic_generator_loss(self._judge(fake))
        return loss, {"adversarial": loss.detach()}

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        real, is_regularised = self.real_masks(batch), self.step % self.config.r1_every == 0
        # Second derivatives in bf16 would be mostly rounding.
        with torch.autocast(real.device.type, enabled=not is_regularised and torch.is_autocast_enabled()):
            real_logits = self._judge(real.requires_grad_(is_regularised))
        fake_logits = self._judge(batch["fake"])
        loss = logistic_discriminator_loss(real_logits, fake_logits)
        is_right = ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2
        terms = {"discriminator_logistic": loss.detach(), "discriminator_accuracy": is_right}
        if is_regularised:
            penalty = r1_penalty(real, real_logits)
            loss = loss + self.config.r1_every * self.config.r1_weight / 2 * penalty
            terms["discriminator_r1"] = penalty.detach()
        return loss, terms

    def _judge(self, masks: Tensor) -> Tensor:
        return self.discriminator(masks, self.depth, self.alpha)


def _at(values: Sequence[int], depth: int) -> int:
    """The value of a depth; the last one holds for all finer depths."""
    return values[min(depth, len(values)) - 1]
