"""CS2: draws an image from the unsupervised mask of one image in the style of another, and labels what it drew.

Xing et al., "CS²: A Controllable and Simultaneous Synthesizer of Images and Annotations with Minimal Human
Intervention", MICCAI 2022. The content is a map of few clusters, each in its mean intensity (HU); the style, the mean
and deviation of a reference image's features, reaches the generator through adaptive instance normalisation in every
convolutional block but the residual ones. The label is the majority vote of ten pixel classifiers on the generator's
features.

In SA-CPS and SA-ST the content is that of the unlabelled image, edited by its pseudo-label (`mask_editing.py`).
Deviations from the paper and the released code: docs/methods.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.bounds import (
    BATCH,
    DECAY,
    DEPTH,
    FRACTION,
    LEARNING_RATE,
    PROBABILITY,
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
from nnunet_synth.losses.reconstruction import perceptual_loss
from nnunet_synth.losses.style import style_loss
from nnunet_synth.progress import progress
from nnunet_synth.superpixels import WHITE, grid_shape, scaled_num_segments, slic
from nnunet_synth.synthesizers.adain import StyleStatistics, adain, mean_and_deviation
from nnunet_synth.synthesizers.base import Batch, Prepared, Slices, SliceSource, Stage, SynthMeta, Terms
from nnunet_synth.synthesizers.blocks import frozen, init_normal, masked
from nnunet_synth.synthesizers.conditional_stage import weighted_sum
from nnunet_synth.synthesizers.mask_conditioned import GRAY_STEP, MAX_SLICES, NUM_SEGMENTS, MaskConditioned
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.pixel_classifier import PixelClassifierEnsemble
from nnunet_synth.synthesizers.residual_generator import ResidualTrunk, head
from nnunet_synth.synthesizers.style_pool import StyleCode, StylePool
from nnunet_synth.synthesizers.tiles import join_tiles, number_tiles, stack_tiles

MAX_CLUSTERS = 128      # cached ids are below this
UNKNOWN = -1            # class of a pixel that nobody annotated
MAX_TRIES = 100         # for a reference that is another slice than the content


@dataclass(frozen=True)
class CS2Config(Settings):
    """CS2's hyper-parameters; the defaults are those of the preset "default"."""

    mask: str = choice("cnn", "slic")  # clusters that `nnunet_synth layouts --method cs2` cached | slic: as UM2I
    num_segments: int = bounded(512, NUM_SEGMENTS)               # M of slic, in an image of 512 × 512
    # t of slic, between gray values. 0: superpixels keep their mean, as clusters do. Rounding down makes content darker
    # by t / 2, and drawings with it, since the content loss pulls them there.
    gray_step: float = bounded(0.0, GRAY_STEP)
    compactness: float = bounded(0.1, Bounds(low=0, high=1000))  # of slic

    width: int = bounded(32, WIDTH)  # of the generator's first layer; it doubles with every halving of the size
    num_down: int = bounded(4, DEPTH)
    num_blocks: int = bounded(9, Bounds(low=0, high=64))         # residual ones
    adain: str = choice("paper", "code")  # in every convolutional block but the residual ones | code: before up-blocks
    # A style's mean and deviation: of each channel | scalar: of a mix of them.
    style_pool: str = choice("channel", "scalar")

    ndf: int = bounded(64, WIDTH)                                # width of the discriminator's first layer
    num_discriminator_layers: int = bounded(4, DEPTH)            # strided ones

    adversarial_weight: float = bounded(1.0, WEIGHT)
    style_weight: float = bounded(1.0, WEIGHT)
    style_loss: str = choice("statistics", "features")  # of features | features: pixel by pixel, as the released code
    # Of the MSE; None = 0.001 with perceptual features, 10 without.
    content_weight: float | None = bounded(None, WEIGHT)

    num_steps: int = bounded(25_000, STEPS)                      # of both stages
    batch_size: int = bounded(8, BATCH)
    learning_rate: float = bounded(1e-4, LEARNING_RATE)
    beta1: float = bounded(0.9, DECAY)                           # of Adam
    unlabelled_share: float = bounded(0.5, FRACTION)  # of content and references, where the fold has unlabelled slices
    stacked: bool = False               # 2.5D: the slices of a montage are channels of one image

    num_classifiers: int = bounded(10, Bounds(low=1, high=1000))
    # Of the first hidden layer; the second has a quarter.
    classifier_width: int = bounded(128, Bounds(low=4, high=8192))
    classifier_share: float = bounded(0.1, PROBABILITY)          # of the steps, after those of the generator
    classifier_batch_size: int = bounded(4, BATCH)               # slices a step
    classifier_pixels: int = bounded(16_384, Bounds(low=2, high=2**28))  # of them, each classifier its own
    classifier_lr: float = bounded(1e-3, LEARNING_RATE)
    background_weight: float = bounded(0.1, WEIGHT)              # of background in the cross entropy; labels have 1


# ----------------------------------------------------------------------------------------------------------------------
# The generator


class Generator(nn.Module):
    """Content and the style of a reference → image in (−1, 1).

    One encoder sees both. Where AdaIN is in every block, it stands between norm and activation and takes the statistics
    that the reference has there at the same resolution, where the encoder is as wide as the decoder; otherwise, after
    the activation.
    """

    def __init__(self, config: CS2Config, num_channels: int) -> None:
        super().__init__()
        # Batch norm: instance norm would take from the reference what is to be its style.
        self.trunk = ResidualTrunk(num_channels, config.width, config.num_down, config.num_blocks, norm="batch")
        self.widths = [config.width * 2 ** level for level in range(config.num_down + 1)]
        self.in_every_block = config.adain == "paper"
        self.style = StyleStatistics(self.widths, config.style_pool, only_deepest=not self.in_every_block)
        self.to_image = head(config.width, num_channels)
        init_normal(self)
        self.to(memory_format=torch.channels_last)

    @property
    def feature_channels(self) -> list[int]:
        """Of what `draw` returns beside the image."""
        deepest, *others = self.widths[::-1]
        channels = [deepest * (1 + len(self.trunk.blocks)), *others]
        channels[-1] += self.trunk.in_channels
        return channels

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        """For training: both go through the encoder in one batch, so that its batch norms see, and keep, the statistics
        of both.

        Args:
            content, reference: [N, C, H, W] in [−1, 1].
        """
        x, style = torch.cat([content, reference]), []
        for level, stage in enumerate(self._encoder()):
            x, reference = stage[:-1](x).chunk(2)
            if self.in_every_block:
                style.append(self.style.of_level(reference, level))
                x = adain(x, *mean_and_deviation(style[-1]))
            x, reference = stage[-1](x), stage[-1](reference)
            if not self.in_every_block:
                style.append(self.style.of_level(reference, level))
            x = torch.cat([x, reference])
        return self._decode(x.chunk(2)[0], torch.cat(style, dim=1))[0]

    def style_of(self, reference: Tensor) -> Tensor:
        """[N, F] all that the generator takes from reference images [N, C, H, W] in [−1, 1]."""
        x, features = reference, []
        for stage in self._encoder():
            before = stage[:-1](x)
            x = stage[-1](before)
            features.append(before if self.in_every_block else x)
        return self.style(features)

    def draw(self, content: Tensor, style: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`forward` in a style that `style_of` gave, [N or 1, F].

        Returns:
            The image, and the features that tell its label (`feature_channels`), from the coarsest resolution to the
            finest.
        """
        x = content
        for level, stage in enumerate(self._encoder()):
            x = self._run(stage, x, style, level)
        return self._decode(x, style)

    def _run(self, stage: nn.Sequential, x: Tensor, style: Tensor, level: int) -> Tensor:
        """A convolutional block whose output is of this level."""
        if not self.in_every_block:
            return stage(x)
        return stage[-1](adain(stage[:-1](x), *self.style.at(style, level)))

    def _encoder(self) -> list[nn.Sequential]:
        return [self.trunk.stem, *self.trunk.down]

    def _decode(self, x: Tensor, style: Tensor) -> tuple[Tensor, list[Tensor]]:
        deepest = [x]
        for block in self.trunk.blocks:
            deepest.append(block(deepest[-1]))
        x, features = deepest[-1], [torch.cat(deepest, dim=1)]
        for number, stage in enumerate(self.trunk.up):
            level = len(self.trunk.up) - number
            if not self.in_every_block:
                x = adain(x, *self.style.at(style, level))
            x = self._run(stage, x, style, level - 1)
            features.append(x)
        image = torch.tanh(self.to_image(x))
        features[-1] = torch.cat([x, image.to(x.dtype)], dim=1)
        return image, features


# ----------------------------------------------------------------------------------------------------------------------
# The synthesizer


class CS2(MaskConditioned):
    """Unsupervised mask of the request's image, edited by its label → image in the style of a training slice, and the
    label that it shows."""

    name = "cs2"
    takes_style = True
    Config = CS2Config
    PRESETS = {
        # Learns within a few hundred steps on a CPU; small slices need small superpixels.
        "tiny": CS2Config(mask="slic", num_segments=8192, width=8, num_down=2, num_blocks=3, ndf=8,
                          num_discriminator_layers=2, num_steps=1_000, learning_rate=1e-3, beta1=0.5,
                          classifier_width=32, classifier_share=0.2, classifier_pixels=2_048),
        "default": CS2Config(),
        "paper": CS2Config(width=64, batch_size=4, classifier_pixels=65_536),
    }

    def __init__(self, meta: SynthMeta, config: CS2Config) -> None:
        super().__init__(meta, config)
        if config.stacked and not meta.montage:
            raise UserError("stacked slices are those of a montage: pretrain with --montage 2x2, or without --option "
                            "stacked=true")
        self.grid = tuple(meta.montage) if config.stacked else (1, 1)      # rows and columns that are stacked
        num_slices = math.prod(self.grid)
        self.generator = Generator(config, num_slices * len(meta.channel_names))
        self.classifiers = PixelClassifierEnsemble(
            self.generator.feature_channels, len(self.label_values), num_slices, config.num_classifiers,
            hidden=(config.classifier_width, config.classifier_width // 4))
        self.references = StylePool(1, self.generator.style.num_values)
        self.register_buffer("reference", None, persistent=False)      # [1, F] the style of the current mini-batch

    @classmethod
    def build(cls, meta: SynthMeta, config: CS2Config) -> CS2:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return self.generator.trunk.divisor * math.lcm(*self.grid)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "cluster"} if self.config.mask == "cnn" else {"image"})

    @property
    def has_label_head(self) -> bool:
        return True

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        total = self.config.num_steps if steps is None else steps
        num_classifier_steps = max(1, round(total * self.config.classifier_share))
        if num_classifier_steps >= total:
            raise UserError(f"{total} step(s) are too few for CS2's two stages: use at least 2")
        return [GeneratorStage(self, total - num_classifier_steps, perceptual),
                ClassifierStage(self, num_classifier_steps)]

    # -- content -----------------------------------------------------------------------------------------------------

    @property
    def gray_step(self) -> float:
        return self.config.gray_step if self.config.mask == "slic" else 0.0

    def find_segments(self, gray: Tensor, cluster: Tensor | None) -> tuple[Tensor, int]:
        if self.config.mask == "slic":
            number = scaled_num_segments(*gray.shape[2:], self.config.num_segments)
            rows, columns = grid_shape(*gray.shape[2:], number)
            return slic(gray, number, self.config.compactness), rows * columns
        if cluster is None:
            raise UserError("CS2's clusters are found before training and cannot be made up for this image: pretrain "
                            "with --option mask=slic")
        if not self.meta.montage:
            return cluster, MAX_CLUSTERS
        # Each slice of a montage has clusters of its own.
        tile = number_tiles(*cluster.shape[1:], *self.meta.montage, device=cluster.device)
        return cluster + MAX_CLUSTERS * tile, MAX_CLUSTERS * math.prod(self.meta.montage)

    def prepare_slices(self, slices: Slices) -> Prepared:
        """Montages of any size: each of their slices is padded by itself, so that they stay where they belong."""
        if not self.meta.montage:
            return super().prepare_slices(slices)

        def cut(maps: Tensor) -> Tensor:
            """[N, C, rows · H, columns · W] → [N · rows · columns, C, H, W]."""
            return stack_tiles(maps, *self.meta.montage).unflatten(1, (-1, maps.shape[1])).flatten(0, 1)

        def joined(tiles: Tensor) -> Tensor:
            num_tiles = math.prod(self.meta.montage)
            return join_tiles(tiles.unflatten(0, (-1, num_tiles)).flatten(1, 2), *self.meta.montage)

        label, layout, valid, cluster = (
            None if maps is None else cut(maps[:, None])[:, 0]
            for maps in (slices.label, slices.layout, slices.valid, slices.cluster))
        tiles = super().prepare_slices(replace(slices, image=cut(slices.image), label=label, layout=layout, valid=valid,
                                               cluster=cluster))
        semantic, label, layout, cluster, valid = (
            None if maps is None else joined(maps[:, None])[:, 0]
            for maps in (tiles.semantic, tiles.label, tiles.layout, tiles.cluster, tiles.valid))
        return Prepared(semantic, label, layout, joined(tiles.image), cluster, valid, None)

    def stack(self, images: Tensor) -> Tensor:
        """[N, C, …] as the generator sees them: with stacked slices, of more channels and less pixels."""
        return stack_tiles(images, *self.grid)

    def join(self, images: Tensor) -> Tensor:
        """Undoes `stack`."""
        return join_tiles(images, *self.grid)

    # -- style -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_pool(self, slices: SliceSource) -> None:
        """The styles of labelled slices (those with lesions, or all: `style_source`), and the gray values of their
        lesions.

        Raises:
            UserError: there are no lesions, or no cached clusters.
        """
        assert not self.training, "call eval() on the synthesizer first"
        if self.style.source == "self":
            return
        only_targets = self.style.source == "pool_positive"
        labelled = slices.iterate(only_targets=only_targets, max_slices=MAX_SLICES)
        styles: list[StyleCode] = []

        def read() -> Iterator[tuple[Slices, Prepared]]:
            for one in progress(labelled, "collecting references"):
                check_clusters(self.config, one)
                prepared = self.prepare_slices(one)
                style = self.generator.style_of(self.stack(masked(prepared.image, prepared.valid)))
                styles.append(StyleCode(style.float(), torch.ones_like(style[:, 0], dtype=torch.bool), one.origin[0]))
                yield one, prepared

        self.fit_lesion_values(read())
        self.references.fill(styles)

    def pool_definition(self) -> dict[str, Any]:
        return {"source": self.style.source, "references": len(self.references), "sha256": self.references.sha256(),
                "lesions_sha256": self.lesion_values.sha256()}

    def begin_step(self, generator: torch.Generator | None) -> None:
        """Draw one reference image for the whole mini-batch."""
        if self.style.source == "self":
            return
        if len(self.references) == 0:
            raise RuntimeError("call fit_pool before begin_step")
        self.reference = self.references.codes[self.references.draw(1, generator), 0]

    # -- drawing -----------------------------------------------------------------------------------------------------

    def draw_masks(self, mask: Tensor, own: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        image, features = self.generator.draw(self.stack(mask / WHITE * 2 - 1), self._style_for(own))
        return self.join(image), features

    def _style_for(self, own: Tensor | None) -> Tensor:
        """[1, F] where all images share a reference; [N, F] where each is its own."""
        if self.style.source == "self":
            return self.generator.style_of(self.stack(own))
        if self.reference is None:
            raise RuntimeError("call begin_step before synthesize")
        return self.reference

    def see_label(self, seen: list[Tensor]) -> Tensor:
        labels = self.classifiers(seen).unflatten(0, (-1, math.prod(self.grid)))
        return self.label_values[self.join(labels)[:, 0]]


def check_clusters(config: CS2Config, slices: Slices) -> None:
    """Raises UserError where clusters are needed and were not found, or are superpixels."""
    if config.mask == "slic":
        return
    cure = "make them with nnunet_synth layouts DATASET --method cs2, or pretrain with --option mask=slic"
    if slices.cluster is None or not slices.cluster.any():
        raise UserError(f"case {slices.origin[0][0]} has no cached clusters: {cure}")
    if slices.cluster.max() >= MAX_CLUSTERS:
        raise UserError(f"case {slices.origin[0][0]} has {int(slices.cluster.max())} clusters, which must be "
                        f"superpixels: {cure}")


# ----------------------------------------------------------------------------------------------------------------------
# Training


class GeneratorStage(Stage):
    """Draw the content of one slice in the style of another: L_adv + L_style(·, reference) + λ·MSE(·, content)."""

    name = "generator"

    def __init__(self, cs2: CS2, num_steps: int, perceptual: nn.Module | None) -> None:
        cs2.check_patch_size()
        self.cs2, self.config = cs2, cs2.config
        self.num_steps, self.batch_size = num_steps, self.config.batch_size
        self.betas = (self.config.beta1, 0.999)
        self.generator = cs2.generator
        self.discriminator = MultiScaleDiscriminator(self.generator.trunk.in_channels, self.config.ndf,
                                                     self.config.num_discriminator_layers, num_scales=1)
        init_normal(self.discriminator)
        self.perceptual = perceptual
        self.content_weight = self.config.content_weight
        if self.content_weight is None:
            self.content_weight = 10.0 if perceptual is None else 0.001

    def learning_rates(self, step: int) -> tuple[float, float]:
        return self.config.learning_rate, self.config.learning_rate

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """image and reference [N, C, H, W] in [−1, 1], of different slices; valid and, for clusters, cluster
        [N, H, W]."""
        content = self._slices(slices, rng)
        check_clusters(self.config, content)
        reference, chosen = self._references(content, slices, rng)
        unit = self.cs2.to_unit
        batch = {"image": masked(unit(content.image), content.valid), "valid": content.valid,
                 "reference": masked(unit(reference.image), reference.valid)[chosen]}
        return {**batch, "cluster": content.cluster} if self.config.mask == "cnn" else batch

    def _slices(self, slices: SliceSource, rng: np.random.Generator) -> Slices:
        """A batch of labelled and, where there are any, unlabelled slices."""
        unlabelled = slices.unlabelled()
        share = self.config.unlabelled_share if unlabelled is not None else 0.0
        num_unlabelled = int(rng.binomial(self.batch_size, share))
        parts = [source.sample(number, tuple(self.cs2.meta.patch_size), rng)
                 for source, number in ((slices, self.batch_size - num_unlabelled), (unlabelled, num_unlabelled))
                 if number]
        return concatenate(parts)

    def _references(self, content: Slices, slices: SliceSource,
                    rng: np.random.Generator) -> tuple[Slices, list[int]]:
        """A batch, and which of it is the reference of each content: never the same slice.

        Raises:
            UserError: there is but one slice.
        """
        for _ in range(MAX_TRIES):
            candidates = self._slices(slices, rng)
            chosen = [_first_other(candidates.origin, number, origin) for number, origin in enumerate(content.origin)]
            if None not in chosen:
                return candidates, chosen
        raise UserError(f"CS2 draws one training slice in the style of another, but fold {self.cs2.meta.fold} has only "
                        f"slice {content.origin[0][1]} of case {content.origin[0][0]}: label more, or add unlabelled "
                        "scans")

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        content = self.cs2.mask_of(batch["image"], batch.get("cluster")) / WHITE * 2 - 1
        drawn = self.generator(self.cs2.stack(content), self.cs2.stack(batch["reference"]))
        fake = masked(self.cs2.join(drawn), batch["valid"])
        batch["fake"] = fake.detach()
        with frozen(self.discriminator):
            judged = self.discriminator(self.cs2.stack(fake))
        weighted = {"adversarial": self.config.adversarial_weight * LEAST_SQUARES.generator(judged),
                    "content": self.content_weight * F.mse_loss(fake.float(), masked(content, batch["valid"]))}
        if self.perceptual is not None:
            taps = self.perceptual(batch["reference"]), self.perceptual(fake)
            distance = style_loss(*taps) if self.config.style_loss == "statistics" else perceptual_loss(*taps)
            weighted["style"] = self.config.style_weight * distance
        return weighted_sum(weighted)

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Real are the references: that they show something else is nothing that it is told of."""
        real, fake = (self.discriminator(self.cs2.stack(batch[name].float())) for name in ("reference", "fake"))
        loss = LEAST_SQUARES.discriminator(real, fake)
        return loss, {"discriminator": loss.detach(), "discriminator_accuracy": LEAST_SQUARES.accuracy(real, fake)}


def concatenate(parts: list[Slices]) -> Slices:
    """One batch of several."""
    if len(parts) == 1:
        return parts[0]
    image, label, layout, valid = (torch.cat([getattr(part, name) for part in parts])
                                   for name in ("image", "label", "layout", "valid"))
    clusters = [part.cluster for part in parts]
    return Slices(image, label, layout, valid, [origin for part in parts for origin in part.origin],
                  None if None in clusters else torch.cat(clusters))


def _first_other(origins: list[tuple[str, int]], start: int, own: tuple[str, int]) -> int | None:
    """From `start` on, around the list: the first place where another origin is."""
    places = [*range(start, len(origins)), *range(start)]
    return next((place for place in places if origins[place] != own), None)


class ClassifierStage(Stage):
    """The pixel classifiers learn from labelled slices that the generator, which stays as it is, draws in their own
    style from their own content."""

    name = "classifiers"
    betas = (0.5, 0.999)

    def __init__(self, cs2: CS2, num_steps: int) -> None:
        self.cs2, self.config = cs2, cs2.config
        self.num_steps, self.batch_size = num_steps, self.config.classifier_batch_size
        self.generator = cs2.classifiers

    def learning_rates(self, step: int) -> tuple[float, float]:
        return self.config.classifier_lr, 0.0

    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """image [N, C, H, W] in [−1, 1]; class [N, slices, H, W], −1 = not annotated; pixels [classifiers, P, 3]
        (sample, row, column), drawn for each classifier from what is annotated; for clusters, cluster [N, H, W]."""
        part = slices.sample(self.batch_size, tuple(self.cs2.meta.patch_size), rng)
        check_clusters(self.config, part)
        valid = part.valid if part.valid.any() else torch.ones_like(part.valid)
        classes = self.cs2.stack(self.cs2.classes_of(part.label).masked_fill(~valid, UNKNOWN)[:, None])
        annotated = (classes != UNKNOWN).any(1).nonzero()
        chosen = rng.integers(len(annotated), size=(self.config.num_classifiers, self.config.classifier_pixels))
        batch = {"image": masked(self.cs2.to_unit(part.image), part.valid), "class": classes,
                 "pixels": annotated[torch.from_numpy(chosen)]}
        return {**batch, "cluster": part.cluster} if self.config.mask == "cnn" else batch

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        with torch.no_grad():
            style = self.cs2.generator.style_of(self.cs2.stack(batch["image"]))
            content = self.cs2.mask_of(batch["image"], batch.get("cluster")) / WHITE * 2 - 1
            _, features = self.cs2.generator.draw(self.cs2.stack(content), style)
        logits = self.generator.logits_at(features, batch["pixels"]).float()
        sample, row, column = batch["pixels"].unbind(2)
        target = batch["class"][sample, :, row, column]
        weight = torch.ones_like(logits[0, 0, 0])
        weight[0] = self.config.background_weight
        # A sum, and not one cross entropy of all: what one sees must not weigh another's loss.
        losses = torch.stack([F.cross_entropy(own.flatten(0, 1), seen.flatten(), weight, ignore_index=UNKNOWN)
                              for own, seen in zip(logits, target, strict=True)])
        is_right = (logits.argmax(-1) == target)[target != UNKNOWN].float().mean()
        return losses.sum(), {"cross_entropy": losses.detach().mean(), "accuracy": is_right}
