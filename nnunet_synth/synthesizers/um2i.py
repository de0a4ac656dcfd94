"""UM2I: draws an image, and tells the label that it shows, from the unsupervised mask of another image.

Xing et al., "Less is More: Unsupervised Mask-guided Annotated CT Image Synthesis with Minimum Manual Segmentations",
IEEE TMI 2023. An unsupervised mask (UM) is an image's superpixels, each in its quantised mean gray value; G₂ turns it
back into an image. Unlabelled images train it as well as labelled ones do: for its segmentation head they get
pseudo-labels, which count where the discriminator of label maps finds them credible.

In SA-CPS and SA-ST the UM is that of the unlabelled image, edited by its pseudo-label (`mask_editing.py`). Deviations
from the paper and the released code: docs/methods.md.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.bounds import (
    BATCH,
    DEPTH,
    FRACTION,
    LEARNING_RATE,
    STEPS,
    WEIGHT,
    WIDTH,
    Bounds,
    Settings,
    bounded,
    choice,
)
from nnunet_synth.errors import UserError
from nnunet_synth.losses.adversarial import LEAST_SQUARES
from nnunet_synth.losses.trusted_segmentation import trusted_segmentation_loss
from nnunet_synth.progress import progress
from nnunet_synth.superpixels import WHITE, grid_shape, scaled_num_segments, slic
from nnunet_synth.synthesizers.base import Batch, Prepared, Slices, SliceSource, Stage, SynthMeta, Terms
from nnunet_synth.synthesizers.blocks import frozen, init_normal, masked
from nnunet_synth.synthesizers.conditional_stage import judge, reconstruction_terms, weighted_sum
from nnunet_synth.synthesizers.edge_map import edge_map
from nnunet_synth.synthesizers.mask_conditioned import GRAY_STEP, MAX_SLICES, NUM_SEGMENTS, MaskConditioned
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.residual_generator import ResidualTrunk, head

MAX_CLUSTERS = 128      # cached ids are below this


@dataclass(frozen=True)
class UM2IConfig(Settings):
    """UM2I's hyper-parameters; the defaults are those of the preset "default"."""

    width: int = bounded(32, WIDTH)  # of G₂'s first layer; it doubles with every halving of the resolution
    num_down: int = bounded(4, DEPTH)
    num_blocks: int = bounded(9, Bounds(low=0, high=64))         # residual ones
    norm: str = choice("instance", "batch")
    # Both tasks on one trunk | separate (Table II: one trunk each) | image.
    tasks: str = choice("joint", "separate", "image")

    superpixels: str = choice("slic", "cached")                 # | cached: those that `nnunet_synth layouts` made
    num_segments: int = bounded(512, NUM_SEGMENTS)               # M, in an image of 512 × 512
    gray_step: float = bounded(50.0, GRAY_STEP)  # t, between the gray values of the UM; 0 = not quantised (Table V)
    compactness: float = bounded(0.1, Bounds(low=0, high=1000))  # of SLIC
    um_policy: str = choice("edit", "as_is")  # the UM of the unlabelled image is edited by its label | as_is

    ndf: int = bounded(64, WIDTH)                                # width of the discriminators' first layer
    num_discriminator_layers: int = bounded(3, DEPTH)            # strided ones
    num_scales: int = bounded(2, Bounds(low=1, high=8))          # discriminators on the image and on its averaged half

    recon: str = choice("vgg", "l1", "both")  # perceptual (L1 where no features are at hand) | l1 | both
    adversarial_weight: float = bounded(1.0, WEIGHT)
    perceptual_weight: float = bounded(10.0, WEIGHT)
    l1_weight: float = bounded(10.0, WEIGHT)
    label_adversarial_weight: float = bounded(1.0, WEIGHT)
    segmentation_weight: float = bounded(10.0, WEIGHT)
    unlabelled_weight: float = bounded(0.5, WEIGHT)  # of the segmentation loss of pseudo-labels, beside that of labels

    semi_supervised: bool = True        # False = the supervised stage only (Table III)
    # Of the steps, before unlabelled slices come in.
    supervised_share: float = bounded(0.5, Bounds(low=0, high=1, open_low=True))
    confidence_threshold: float = bounded(0.5, FRACTION)         # of the pseudo-labels that count

    num_steps: int = bounded(25_000, STEPS)
    batch_size: int = bounded(8, BATCH)                          # labelled slices a step, and as many unlabelled ones
    generator_lr: float = bounded(2e-4, LEARNING_RATE)
    discriminator_lr: float = bounded(2e-4, LEARNING_RATE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.superpixels == "cached" and self.gray_step == 0:
            raise UserError("gray_step 0 needs superpixels slic: cached ones are quantised")


# ----------------------------------------------------------------------------------------------------------------------
# Networks


class Generator(nn.Module):
    """G₂: UM and its edges → image in (−1, 1), and logits of the dataset's labels where there is such a head."""

    def __init__(self, config: UM2IConfig, num_channels: int, num_labels: int) -> None:
        super().__init__()

        def trunk() -> ResidualTrunk:
            return ResidualTrunk(num_channels + 1, config.width, config.num_down, config.num_blocks, config.norm)

        self.trunk = trunk()
        self.label_trunk = trunk() if config.tasks == "separate" else None
        self.to_image = head(config.width, num_channels)
        self.to_label = None if config.tasks == "image" else head(config.width, num_labels)
        init_normal(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """[N, C + 1, H, W] → [N, C, H, W], [N, num_labels, H, W] or None."""
        features = self.trunk(condition)
        image = torch.tanh(self.to_image(features))
        if self.to_label is None:
            return image, None
        return image, self.to_label(features if self.label_trunk is None else self.label_trunk(condition))


class Discriminators(nn.Module):
    """D₂ᴵ looks at a UM and an image, D₂ˢ at a UM and a label map, one channel a label."""

    def __init__(self, config: UM2IConfig, num_channels: int, num_labels: int) -> None:
        super().__init__()

        def discriminator(num_judged: int) -> MultiScaleDiscriminator:
            return MultiScaleDiscriminator(num_channels + 1 + num_judged, config.ndf, config.num_discriminator_layers,
                                           config.num_scales)

        self.image = discriminator(num_channels)
        self.label = None if config.tasks == "image" else discriminator(num_labels)
        init_normal(self)


class Teacher(nn.Module):
    """G₂ and its discriminators as the supervised stage left them: never trained again, and not for inference."""

    def __init__(self, generator: Generator, discriminators: Discriminators) -> None:
        super().__init__()
        self.generator, self.discriminators = copy.deepcopy(generator), copy.deepcopy(discriminators)
        self.to(next(generator.parameters()).device).requires_grad_(False)

    def take(self, generator: Generator, discriminators: Discriminators) -> None:
        """Become a copy of these."""
        self.generator.load_state_dict(generator.state_dict())
        self.discriminators.load_state_dict(discriminators.state_dict())

    @torch.no_grad()
    def label(self, condition: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-segmentation and confidence map of unlabelled slices.

        Returns:
            [N, H, W] int64 classes; [N, H, W] float32, how real D₂ˢ finds the label map there.
        """
        _, logits = self.generator(condition)
        probability = label_map(logits, valid)
        judged = self.discriminators.label(torch.cat([condition, probability], dim=1))
        return probability.argmax(1), self.discriminators.label.confidence(judged, *valid.shape[1:],
                                                                             LEAST_SQUARES.probability)


def label_map(logits: Tensor, valid: Tensor) -> Tensor:
    """[N, K, H, W] logits → probabilities; background, and surely so, where nothing was annotated."""
    return _background_outside(logits.float().softmax(1), valid)


def _background_outside(probability: Tensor, valid: Tensor) -> Tensor:
    background = torch.zeros_like(probability[:1, :, :1, :1])
    background[:, 0] = 1
    return torch.where(valid[:, None], probability, background)


# ----------------------------------------------------------------------------------------------------------------------
# The synthesizer


class UM2I(MaskConditioned):
    """Unsupervised mask of the request's image, edited by its label → image, and the label that it shows."""

    name = "um2i"
    Config = UM2IConfig
    PRESETS = {
        # Learns within a few hundred steps on a CPU. Small slices need small superpixels, faint lesions small t.
        "tiny": UM2IConfig(width=8, num_down=2, num_blocks=3, num_segments=8192, gray_step=10.0, ndf=8,
                           num_discriminator_layers=2, num_steps=600, generator_lr=1e-3),
        "default": UM2IConfig(),
        # M = 512 on a montage of four slices of 512 × 512.
        "paper": UM2IConfig(width=64, norm="batch", num_segments=128, batch_size=16),
    }

    def __init__(self, meta: SynthMeta, config: UM2IConfig) -> None:
        super().__init__(meta, config)
        self.generator = Generator(config, len(meta.channel_names), len(self.label_values))
        self.teacher: Teacher | None = None         # while the semi-supervised stage trains

    @classmethod
    def build(cls, meta: SynthMeta, config: UM2IConfig) -> UM2I:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return self.generator.trunk.divisor

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "cluster"} if self.config.superpixels == "cached" else {"image"})

    @property
    def has_label_head(self) -> bool:
        return self.generator.to_label is not None

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        total = self.config.num_steps if steps is None else steps
        num_supervised = max(1, round(total * self.config.supervised_share)) if self.config.semi_supervised else total
        discriminators = Discriminators(self.config, len(self.meta.channel_names), len(self.label_values))
        stages: list[Stage] = [SupervisedStage(self, discriminators, (0, num_supervised), total, perceptual)]
        if num_supervised < total:
            self.teacher = Teacher(self.generator, discriminators)
            stages.append(SemiSupervisedStage(self, discriminators, (num_supervised, total), total, perceptual))
        return stages

    def export_state(self) -> dict[str, Tensor]:
        """G₂ alone: the teacher is of the training."""
        return {name: tensor for name, tensor in super().export_state().items() if not name.startswith("teacher.")}

    # -- unsupervised masks ------------------------------------------------------------------------------------------

    @property
    def gray_step(self) -> float:
        return self.config.gray_step

    @property
    def edits(self) -> bool:
        return self.config.um_policy == "edit" and super().edits

    def find_segments(self, gray: Tensor, cluster: Tensor | None) -> tuple[Tensor, int]:
        if self.config.superpixels == "cached":
            return cluster, MAX_CLUSTERS
        number = scaled_num_segments(*gray.shape[2:], self.config.num_segments)
        rows, columns = grid_shape(*gray.shape[2:], number)
        return slic(gray, number, self.config.compactness), rows * columns

    def condition_on(self, mask: Tensor) -> Tensor:
        """What G₂ and the discriminators see: the mask in [−1, 1] and its edges, [N, C + 1, H, W]."""
        return torch.cat([mask / WHITE * 2 - 1, edge_map(mask)], dim=1)

    @torch.no_grad()
    def fit_pool(self, slices: SliceSource) -> None:
        """The gray values that lesions have in labelled slices.

        Raises:
            UserError: there are none, or no cached superpixels.
        """
        assert not self.training, "call eval() on the synthesizer first"
        if not self.edits:
            for one in slices.iterate(only_targets=False, max_slices=1):    # one tells whether the fold has clusters
                _check_cluster(self.config, one)
            return

        def read() -> Iterator[tuple[Slices, Prepared]]:
            labelled = slices.iterate(only_targets=True, max_slices=MAX_SLICES)
            for one in progress(labelled, "collecting lesions' gray values"):
                _check_cluster(self.config, one)
                yield one, self.prepare_slices(one)

        self.fit_lesion_values(read())

    def pool_definition(self) -> dict[str, Any]:
        if not self.edits:
            return {"um_policy": "as_is"}
        return {"um_policy": "edit", "number": len(self.lesion_values.origins), "sha256": self.lesion_values.sha256()}

    # -- drawing -----------------------------------------------------------------------------------------------------

    def draw_masks(self, mask: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The image, and the logits of its label."""
        return self.generator(self.condition_on(mask))

    def see_label(self, seen: Tensor) -> Tensor:
        return self.label_values[seen.argmax(1)]


def _check_cluster(config: UM2IConfig, slices: Slices) -> None:
    if config.superpixels == "cached" and (slices.cluster is None or not slices.cluster.any()):
        raise UserError(f"case {slices.origin[0][0]} has no cached superpixels: run nnunet_synth layouts with "
                        "--method superpixel --into cluster and nnunet_synth preprocess, or pretrain with --option "
                        "superpixels=slic")


# ----------------------------------------------------------------------------------------------------------------------
# Training


class SupervisedStage(Stage):
    """Redraw labelled slices from their UMs: L_adv of D₂ᴵ + 10·L_vgg, and for the labels L_adv of D₂ˢ + 10·L_S."""

    name = "supervised"
    betas = (0.5, 0.999)

    def __init__(self, um2i: UM2I, discriminators: Discriminators, steps: tuple[int, int], total: int,
                 perceptual: nn.Module | None) -> None:
        um2i.check_patch_size()
        self.um2i, self.config = um2i, um2i.config
        self.first_step, self.num_steps, self.total = steps[0], steps[1] - steps[0], total
        self.batch_size = self.config.batch_size
        self.generator, self.discriminator = um2i.generator, discriminators
        self.perceptual = None if self.config.recon == "l1" else perceptual
        self.l1_weight = self.config.l1_weight if self.config.recon != "vgg" or perceptual is None else 0.0
        self.label_values = um2i.label_values.cpu()

    def learning_rates(self, step: int) -> tuple[float, float]:
        """Constant over three quarters of all steps, then linearly to zero."""
        factor = min(1.0, 4 * (1 - (self.first_step + step) / self.total))
        return self.config.generator_lr * factor, self.config.discriminator_lr * factor

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """image [N, C, H, W] in [−1, 1], label [N, H, W] classes, valid and, where it is used, cluster [N, H, W]."""
        return self._tensors(slices, rng)

    def _tensors(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        part = slices.sample(self.batch_size, tuple(self.um2i.meta.patch_size), rng)
        _check_cluster(self.config, part)
        batch = {"image": masked(self.um2i.to_unit(part.image), part.valid), "valid": part.valid,
                 "label": torch.searchsorted(self.label_values, part.label)}
        return {**batch, "cluster": part.cluster} if self.config.superpixels == "cached" else batch

    def on_end(self) -> None:
        if self.um2i.teacher is not None:
            self.um2i.teacher.take(self.generator, self.discriminator)

    # -- the generator's loss ----------------------------------------------------------------------------------------

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        real, valid = batch["image"], batch["valid"]
        condition = self.um2i.condition_on(self.um2i.mask_of(real, batch.get("cluster")))
        drawn, logits = self.generator(condition)
        fake = masked(drawn, valid)
        batch.update(condition=condition, fake=fake.detach())

        with frozen(self.discriminator):
            judged = self.discriminator.image(torch.cat([condition, fake], dim=1))
            weighted = {"adversarial": self.config.adversarial_weight * LEAST_SQUARES.generator(judged),
                        **reconstruction_terms(real, fake, self.perceptual, self.config.perceptual_weight,
                                               self.l1_weight)}
            if logits is not None:
                weighted |= self._segmentation(batch, logits)
        return weighted_sum(weighted)

    def _segmentation(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """The labelled slices' part; they come first in the batch."""
        labelled = slice(0, len(batch["label"]))
        valid = batch["valid"][labelled]
        fake_label = label_map(logits[labelled], valid)
        batch["fake_label"] = fake_label.detach()
        judged = self.discriminator.label(torch.cat([batch["condition"][labelled], fake_label], dim=1))
        return {"label_adversarial": self.config.label_adversarial_weight * LEAST_SQUARES.generator(judged),
                "segmentation": self.config.segmentation_weight * trusted_segmentation_loss(
                    logits[labelled], batch["label"], valid)}

    # -- the discriminators' -----------------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        condition = batch["condition"]
        loss, accuracy = judge(self.discriminator.image, condition, batch["image"], batch["fake"])
        terms = {"discriminator": loss.detach(), "discriminator_accuracy": accuracy}
        if self.discriminator.label is not None:
            labelled = slice(0, len(batch["label"]))
            one_hot = F.one_hot(batch["label"], len(self.um2i.label_values)).movedim(-1, 1).float()
            real = _background_outside(one_hot, batch["valid"][labelled])
            of_labels, accuracy = judge(self.discriminator.label, condition[labelled], real, batch["fake_label"])
            terms |= {"label_discriminator": of_labels.detach(), "label_discriminator_accuracy": accuracy}
            loss = loss + of_labels
        return loss, terms


class SemiSupervisedStage(SupervisedStage):
    """The same with as many unlabelled slices in each batch: the image's losses see both, and the segmentation loss of
    unlabelled ones, at half the weight, the teacher's pseudo-labels where D₂ˢ found them credible (III.B)."""

    name = "semi_supervised"
    _has_warned = False

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """As before, the unlabelled slices behind the labelled ones; `label` is of the labelled ones alone."""
        labelled, source = self._tensors(slices, rng), slices.unlabelled()
        if source is None:
            self._warn()
            return labelled
        unlabelled = self._tensors(source, rng)
        return {name: tensor if name == "label" else torch.cat([tensor, unlabelled[name]])
                for name, tensor in labelled.items()}

    def _warn(self) -> None:
        if not self._has_warned:
            print("warning: this fold has no unlabelled training slices (or they are not preprocessed): UM2I trains on "
                  "labelled ones to its end", file=sys.stderr)
            self._has_warned = True

    def begin_step(self, step: int) -> None:
        if step == 0:       # also where a run is continued between the stages, from the file
            self.discriminator.load_state_dict(self.um2i.teacher.discriminators.state_dict())

    def on_end(self) -> None:
        """The teacher stays what the first stage left."""

    def _segmentation(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        weighted, first = super()._segmentation(batch, logits), len(batch["label"])
        if len(logits) == first:
            return weighted
        valid = batch["valid"][first:]
        pseudo_label, confidence = self.um2i.teacher.label(batch["condition"][first:], valid)
        trusted = valid & (confidence > self.config.confidence_threshold)
        weight = self.config.segmentation_weight * self.config.unlabelled_weight
        return {**weighted, "pseudo_segmentation": weight * trusted_segmentation_loss(logits[first:], pseudo_label,
                                                                                      trusted)}
