"""CoSinGAN: draws an image for a label map after training on a single labelled slice.

P. Zhang et al., *CoSinGAN: Learning COVID-19 Infection Segmentation from a Single Radiological Image*, Diagnostics 10,
2020.
A pyramid of two-stage GANs, each trained alone while all others are frozen: at scale i, G_is fits the condition and
raises the resolution (Eq. 1), G_ir, copied from the trained G_is, restores details (Eq. 2):
O_i = G_ir(G_is(U(O_{i−1}) + C_i)).

The authors published no code. What the paper leaves open, and is decided here: "+" adds the gray condition, in [−1, 1],
to the image (G_ir, a copy of G_is, is fed the image alone, so it can have no more channels); U is bilinear; instance
norm, so that images do not depend on their batch; networks of neighbouring scales of equal depth hand on their weights;
discriminators pad by 2, without which some scales would have no output; gray values for any number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.bounds import BATCH, LEARNING_RATE, SIDE, STEPS, WEIGHT, WIDTH, Bounds, bounded, choice
from nnunet_synth.errors import UserError
from nnunet_synth.losses.adversarial import CROSS_ENTROPY
from nnunet_synth.synthesizers.base import Batch, Prepared, SliceSource, Stage, Synthesizer, SynthMeta, Terms
from nnunet_synth.synthesizers.blocks import frozen, init_normal, masked
from nnunet_synth.synthesizers.chosen_slices import AUTO, choose_slices, parse_slice
from nnunet_synth.synthesizers.conditional_stage import judge, weighted_sum
from nnunet_synth.synthesizers.feature_set import FeatureSet, as_feature_set
from nnunet_synth.synthesizers.gray_conditions import draw_grays, gray_values, paint_classes
from nnunet_synth.synthesizers.hierarchical_augmentation import (
    View,
    draw_focus,
    look_at_image,
    look_at_map,
    strong,
    weak,
)
from nnunet_synth.synthesizers.mixed_terms import MixedReconstruction, MixedWeights, weights_of_classes
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.scales import Scale, find_scales
from nnunet_synth.synthesizers.unet_generator import UNetGenerator

CONDITIONS = ("add", "concat", "onehot")
DROPOUT = 0.5       # of "applying dropout" (AD)


@dataclass(frozen=True)
class CoSinGANConfig(MixedWeights):
    """CoSinGAN's hyper-parameters; the defaults are those of the preset "default"."""

    slices: tuple[str, ...] = (AUTO,)   # CASE:INDEX of each model's slice, or auto: the largest lesions
    num_models: int = bounded(4, Bounds(low=1, high=1000))  # for auto: so many models, of slices from different cases
    max_scale: int | None = bounded(None, SIDE)  # side at which the pyramid stops; None = that of the patch
    width: int = bounded(32, WIDTH)                              # of the generators' first level
    norm: str = choice("instance", "batch")
    condition: str = choice(*CONDITIONS)  # the gray picture to the image | concat: it beside | onehot: classes beside
    reuse_weights: bool = True          # of the scale before, where the networks are equally deep
    ndf: int = bounded(32, WIDTH)                                # width of the discriminators' first layer

    randomised_condition: bool = True   # RC: other gray values at every scale
    image_fusion: bool = False          # IF: mix the images of two models
    dropout: bool = False               # AD: dropout while drawing

    rotation: float = bounded(20.0, Bounds(low=0, high=180))     # degrees, of both augmentations
    # Of the strong one at the first scale: displacement, as a share of the side.
    elastic: float = bounded(0.05, Bounds(low=0, high=1))

    adversarial_weight: float = bounded(1.0, WEIGHT)

    fitting_steps: int = bounded(4000, STEPS)                    # of G_is, at each scale of each model
    restoring_steps: int = bounded(2000, STEPS)                  # of G_ir
    batch_size: int = bounded(4, BATCH)
    fitting_lr: float = bounded(2e-4, LEARNING_RATE)
    restoring_lr: float = bounded(1e-4, LEARNING_RATE)
    discriminator_lr_factor: float = bounded(1.0, Bounds(low=0, high=1000, open_low=True))  # of the generator's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.condition == "onehot" and self.randomised_condition:
            raise UserError("condition onehot has no gray values to randomise: set randomised_condition to false")
        self._check_slices()
        if self.image_fusion and self.number < 2:
            raise UserError("image_fusion mixes the images of two models: give two slices, or set num_models to 2")

    def _check_slices(self) -> None:
        said = " ".join(self.slices)
        if AUTO in self.slices and len(self.slices) > 1:
            raise UserError(f"slices {said}: give {AUTO}, or CASE:INDEX once or more")
        if self.slices != (AUTO,):
            for text in self.slices:
                parse_slice(text)
        if len(set(self.slices)) < len(self.slices):
            raise UserError(f"slices {said}: each can be named once")

    @property
    def number(self) -> int:
        """Of models."""
        return self.num_models if self.slices == (AUTO,) else len(self.slices)


# ----------------------------------------------------------------------------------------------------------------------
# Networks


class Pyramid(nn.Module):
    """One CoSinGAN. Its parts are G_0s, G_0r, G_1s, G_1r, …; part p belongs to scale p // 2 and restores if p is odd.

    Args:
        condition_channels: of the conditions; 0 = they are gray and added to the image.
    """

    def __init__(self, config: CoSinGANConfig, scales: Sequence[Scale], num_channels: int,
                 condition_channels: int) -> None:
        super().__init__()
        self.num_channels, self.condition_channels = num_channels, condition_channels
        self.parts = nn.ModuleList(
            UNetGenerator(num_channels + condition_channels, num_channels, config.width, scale.num_down, config.norm,
                          dropout=DROPOUT, drops_in_training=False) for scale in scales for _ in range(2))
        init_normal(self)

    def draw(self, conditions: Sequence[Tensor], num_parts: int,
             dropout: torch.Generator | None = None) -> Tensor | None:
        """The image [N, C, h, w] in (−1, 1) that the first `num_parts` parts draw; None where that is none of them.

        Args:
            conditions: of each scale, [N, 1 or classes, h, w].
            dropout: where its random numbers come from; None = no dropout.
        """
        image = None
        for part in range(num_parts):
            image = self.draw_part(part, image, conditions[part // 2], dropout)
        return image

    def draw_part(self, part: int, image: Tensor | None, condition: Tensor,
                  dropout: torch.Generator | None = None) -> Tensor:
        """Eq. 1 for an even part, Eq. 2 for an odd one; `image` is what the part before drew."""
        return torch.tanh(self.parts[part](self._restored(image, condition) if part % 2
                                           else self._fitted(image, condition), dropout))

    def _fitted(self, image: Tensor | None, condition: Tensor) -> Tensor:
        """U(O_{i−1}) + C_i; only C_0 at the first scale."""
        number, _, height, width = condition.shape
        if image is None:
            image = condition.new_zeros(number, self.num_channels, height, width)
        else:
            image = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
        return torch.cat([image, condition], dim=1) if self.condition_channels else image + condition

    def _restored(self, image: Tensor, condition: Tensor) -> Tensor:
        """O_is alone."""
        return torch.cat([image, torch.zeros_like(condition)], dim=1) if self.condition_channels else image


# ----------------------------------------------------------------------------------------------------------------------
# The synthesizer


@dataclass(frozen=True)
class _TrainingSlice:
    """What a model learns from: [1, C, H, W] in [−1, 1], [1, H, W] int64 classes, [1, H, W] bool, and [M, 2] int64, the
    (y, x) of all pixels with a target label."""

    image: Tensor
    semantic: Tensor
    valid: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Choice:
    """What one mini-batch is drawn with.

    Attributes:
        models: one, or two that are mixed.
        share: ζ, of the first one.
        grays: [models, scales, classes] gray values of the conditions.
    """

    models: tuple[int, ...]
    share: float
    grays: Tensor


class CoSinGAN(Synthesizer):
    """Semantic classes of a request → image, by one of several models, each of which has seen a single slice."""

    name = "cosingan"
    Config = CoSinGANConfig
    takes_feature_set = True
    max_patch = 512                     # the last of the published scales
    drawing_options = ("randomised_condition", "image_fusion", "dropout")
    PRESETS = {
        # Four minutes of one core at 96 × 96, hence one model, larger learning rates and no MS-SSIM: kornia's windows
        # of up to 33 × 33 pixels would cost many times as much as all else. In so few steps the label must be easy to
        # learn: the condition stands beside the image, and the discriminator is slower and counts less.
        "tiny": CoSinGANConfig(num_models=1, width=16, ndf=8, condition="concat", adversarial_weight=0.2,
                               ms_ssim_weight=0.0, fitting_steps=700, restoring_steps=350, fitting_lr=1e-3,
                               restoring_lr=5e-4, discriminator_lr_factor=0.2),
        "default": CoSinGANConfig(),
        "paper": CoSinGANConfig(width=64, ndf=64),
    }

    def __init__(self, meta: SynthMeta, config: CoSinGANConfig) -> None:
        super().__init__(meta, config)
        num_classes, num_channels = len(meta.semantic), len(meta.channel_names)
        self.scales = find_scales(meta.patch_size, config.max_scale)
        self.condition_channels = {"add": 0, "concat": 1, "onehot": num_classes}[config.condition]
        self.pyramids = nn.ModuleList(Pyramid(config, self.scales, num_channels, self.condition_channels)
                                      for _ in range(config.number))
        self.judges = nn.ModuleDict()       # only while it is trained: the discriminator of each depth
        # Of each model: how many parts are trained, or in training; which classes its slice shows.
        self.register_buffer("trained_parts", torch.zeros(config.number, dtype=torch.int64))
        self.register_buffer("known_classes", torch.ones(config.number, num_classes, dtype=torch.bool))
        self.register_buffer("plain_grays", torch.tensor(gray_values(num_classes), dtype=torch.float32),
                             persistent=False)
        self._training_slices: list[_TrainingSlice] = []
        self._choice: _Choice | None = None

    @classmethod
    def build(cls, meta: SynthMeta, config: CoSinGANConfig) -> CoSinGAN:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return 2 ** self.scales[-1].num_down

    @property
    def num_parts(self) -> int:
        """Of a finished model."""
        return 2 * len(self.scales)

    @property
    def variants(self) -> list[int]:
        """The finished models; else the one that has come furthest; else, where nothing is trained yet, all."""
        trained = self.trained_parts.tolist()
        if max(trained) == 0:
            return list(range(len(trained)))
        finished = [model for model, parts in enumerate(trained) if parts == self.num_parts]
        return finished or [int(np.argmax(trained))]

    # -- training ----------------------------------------------------------------------------------------------------

    def prepare_training(self, slices: SliceSource) -> None:
        """Choose each model's slice."""
        if self._training_slices:
            return
        chosen = choose_slices(slices, self.config.slices, self.config.num_models, self.meta.target_labels,
                               self.meta.train_case_ids)
        for number, one in enumerate(chosen):
            image = masked(self.to_unit(one.image), one.valid)
            semantic = self.meta.semantic.combine(one.label, one.layout)
            is_target = torch.isin(one.label, torch.tensor(self.meta.target_labels)) & one.valid
            self._training_slices.append(_TrainingSlice(image, semantic, one.valid, torch.nonzero(is_target[0])))
            shown = torch.isin(torch.arange(len(self.meta.semantic)), semantic[one.valid])
            shown[0] = True         # nobody misses a background
            self.known_classes[number] = shown.to(self.known_classes.device)
        self.meta = self.meta.with_metrics(training_slices=[f"{case_id}:{index}" for one in chosen
                                                            for case_id, index in one.origin])

    def training_slice(self, model: int) -> _TrainingSlice:
        if not self._training_slices:
            raise RuntimeError("call prepare_training before the stages sample")
        return self._training_slices[model]

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        """Model by model, scale by scale, first G_is, then G_ir. Of `steps` each gets its share, at least one."""
        self.check_patch_size()
        features = as_feature_set(perceptual)
        self.judges = nn.ModuleDict({str(scale.num_down): self._make_judge(scale.num_down) for scale in self.scales})
        places = [(model, part) for model in range(len(self.pyramids)) for part in range(self.num_parts)]
        own = [self.config.restoring_steps if part % 2 else self.config.fitting_steps for _, part in places]
        factor = 1 if steps is None else steps / sum(own)
        ends = [round(factor * sum(own[:number])) for number in range(len(own) + 1)]
        return [CoSinGANStage(self, model, part, max(1, end - start), features)
                for (model, part), (start, end) in zip(places, pairwise(ends), strict=True)]

    def _make_judge(self, num_layers: int) -> MultiScaleDiscriminator:
        """Of one depth; n + 2 convolutions for n downsamplings of the generator."""
        made = MultiScaleDiscriminator(max(1, self.condition_channels) + len(self.meta.channel_names), self.config.ndf,
                                       num_layers, num_scales=1, norm=self.config.norm, padding=2)
        init_normal(made)
        return made

    def finish_part(self, model: int, part: int) -> None:
        """The part is trained: hand its weights on to those that begin with them."""
        parts = self.pyramids[model].parts
        self.trained_parts[model] = part + 1
        if part % 2 == 0:
            parts[part + 1].load_state_dict(parts[part].state_dict())       # "we directly copy the trained generator"
            return
        here = self.scales[part // 2].num_down
        is_last = part + 1 == self.num_parts
        there = self.scales[0 if is_last else part // 2 + 1].num_down
        if self.config.reuse_weights and not is_last and here == there:
            parts[part + 1].load_state_dict(parts[part - 1].state_dict())
        else:
            init_normal(self.judges[str(there)])

    # -- saved weights -----------------------------------------------------------------------------------------------

    def export_state(self) -> dict[str, Tensor]:
        """All but the discriminators."""
        return {name: tensor for name, tensor in super().export_state().items() if not name.startswith("judges.")}

    # -- conditions --------------------------------------------------------------------------------------------------

    def conditions(self, semantics: Sequence[Tensor], grays: Tensor | None = None) -> list[Tensor]:
        """C_i of each scale, [N, 1 or classes, h, w].

        Args:
            semantics: [N, h, w] int64 classes at each scale.
            grays: [scales, classes] in [0, 255]; None = the plain ones.
        """
        if self.config.condition == "onehot":
            return [self.meta.semantic.one_hot(semantic) for semantic in semantics]
        values = self.plain_grays.expand(len(semantics), -1) if grays is None else grays
        return [paint_classes(semantic, value) for semantic, value in zip(semantics, values, strict=True)]

    # -- drawing -----------------------------------------------------------------------------------------------------

    def begin_step(self, generator: torch.Generator | None) -> None:
        """Choose one model (two for IF, and ζ) and the gray values (RC) for a whole mini-batch. Without a generator:
        the first one, the plain values."""
        ready = self.variants if self.variant is None else [self.variant]
        models, share = self._choose_models(ready, generator)
        if generator is None or not self.config.randomised_condition:
            grays = self.plain_grays.expand(len(models), len(self.scales), -1)
        else:
            grays = torch.stack([draw_grays(len(self.scales), len(self.plain_grays), generator) for _ in models])
        self._choice = _Choice(models, share, grays)

    def _choose_models(self, ready: list[int], generator: torch.Generator | None) -> tuple[tuple[int, ...], float]:
        if generator is None:
            return (ready[0],), 1.0
        place, other, share = torch.rand(3, generator=generator, device=generator.device).tolist()
        first = ready[int(place * len(ready))]
        if not self.config.image_fusion:
            return (first,), 1.0
        others = [model for model in self.variants if model != first]
        return ((first, others[int(other * len(others))]), share) if others else ((first,), 1.0)

    def _parts_of(self, model: int) -> int:
        """How many parts draw; all of them where nothing is trained yet."""
        return int(self.trained_parts[model]) or self.num_parts

    def _decode(self, request: Prepared) -> Tensor:
        if self._choice is None:
            raise RuntimeError("call begin_step before synthesize")
        size = request.semantic.shape[1:]
        semantics = [F.interpolate(request.semantic[:, None].float(), scale.size_for(size, self.meta.patch_size),
                                   mode="nearest-exact")[:, 0].long() for scale in self.scales]
        dropout = request.generator if self.config.dropout else None
        drawn = [self.pyramids[model].draw(self.conditions(semantics, grays), self._parts_of(model), dropout)
                 for model, grays in zip(self._choice.models, self._choice.grays, strict=True)]
        image = drawn[0] if len(drawn) == 1 else self._choice.share * drawn[0] + (1 - self._choice.share) * drawn[1]
        return image if image.shape[2:] == size else F.interpolate(image, size, mode="bilinear", align_corners=False)

    def _is_drawable(self, request: Prepared) -> Tensor:
        """Not where a class is asked for that the model's slice does not show."""
        known = self.known_classes[list(self._choice.models)].all(0)
        return (known[request.semantic] | ~request.valid).flatten(1).all(1)


# ----------------------------------------------------------------------------------------------------------------------
# Training


class CoSinGANStage(Stage):
    """One part of one model: Eq. 4 and 5 on augmented views of its slice."""

    betas = (0.5, 0.999)

    def __init__(self, cosingan: CoSinGAN, model: int, part: int, num_steps: int, features: FeatureSet) -> None:
        config, level = cosingan.config, part // 2
        self.scale = cosingan.scales[level]
        self.name = f"model {model + 1}, {self.scale.height} × {self.scale.width}, {'restore' if part % 2 else 'fit'}"
        self.cosingan, self.config, self.model, self.part, self.level = cosingan, config, model, part, level
        self.num_steps, self.batch_size = num_steps, config.batch_size
        self.pyramid = cosingan.pyramids[model]
        self.generator = self.pyramid.parts[part]
        self.discriminator = cosingan.judges[str(self.scale.num_down)]
        self.reconstruction = MixedReconstruction(
            config, weights_of_classes(cosingan.meta.semantic, config.class_weights),
            min(self.scale.height, self.scale.width), features)
        self.augmentation = weak(config.rotation) if part % 2 else strong(level, len(cosingan.scales), config.rotation,
                                                                         config.elastic)

    def learning_rates(self, step: int) -> tuple[float, float]:
        """Constant over the first half, then linearly to zero (3.1.1: 0.05 % an epoch after 2000 of 4000)."""
        rate = self.config.restoring_lr if self.part % 2 else self.config.fitting_lr
        rate *= min(1.0, 2 * (1 - step / self.num_steps))
        return rate, rate * self.config.discriminator_lr_factor

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """Views of the slice: image [N, C, h, w] in [−1, 1] and valid [N, h, w] at this scale; `semantic_j` [N, h, w]
        int64 at this scale and all coarser ones."""
        own, patch_size = self.cosingan.training_slice(self.model), self.cosingan.meta.patch_size
        views = [View.draw(self.augmentation, rng, draw_focus(own.valid.shape[1:], patch_size, own.targets, rng))
                 for _ in range(self.batch_size)]
        size = (self.scale.height, self.scale.width)
        valid = torch.cat([look_at_map(own.valid, view, size, patch_size) for view in views])
        image = torch.cat([look_at_image(own.image, view, size, patch_size) for view in views])
        batch = {"image": masked(image, valid), "valid": valid}
        for number, scale in enumerate(self.cosingan.scales[:self.level + 1]):
            batch[f"semantic_{number}"] = torch.cat([
                look_at_map(own.semantic, view, (scale.height, scale.width), patch_size) for view in views])
        return batch

    def begin_step(self, step: int) -> None:
        # Pictures and checkpoints on the way are drawn by this model, up to this part.
        self.cosingan.variant = self.model
        self.cosingan.trained_parts[self.model] = self.part + 1

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        real, semantic = batch["image"], batch[f"semantic_{self.level}"]
        conditions = self._conditions(batch)
        with torch.no_grad():
            given = self.pyramid.draw(conditions, self.part)
        fake = masked(self.pyramid.draw_part(self.part, given, conditions[-1]), batch["valid"])
        batch["fake"] = fake.detach()
        with frozen(self.discriminator):
            judged = self.discriminator(torch.cat([conditions[-1], fake], dim=1))
            weighted = {"adversarial": self.config.adversarial_weight * CROSS_ENTROPY.generator(judged)}
        return weighted_sum({**weighted, **self.reconstruction.to(real.device)(fake, real, semantic)})

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        loss, accuracy = judge(self.discriminator, self._conditions(batch)[-1], batch["image"], batch["fake"],
                               CROSS_ENTROPY)
        return loss, {"discriminator": loss.detach(), "discriminator_accuracy": accuracy}

    def _conditions(self, batch: Batch) -> list[Tensor]:
        return self.cosingan.conditions([batch[f"semantic_{number}"] for number in range(self.level + 1)])

    def on_end(self) -> None:
        self.cosingan.finish_part(self.model, self.part)
        if (self.model, self.part) == (len(self.cosingan.pyramids) - 1, self.cosingan.num_parts - 1):
            self.cosingan.variant = None
