"""SEAN: draws an image for a label map, each region in a style taken from labelled images.

Zhu et al., "SEAN: Image Synthesis with Semantic Region-Adaptive Normalization", CVPR 2020, as SA-CPS and SA-ST use it
(Lyu et al., TMI 2022, III.B): x̂ = Dec(y, SC_ref), Eq. 3, with the averaged code SC_ref of K labelled, infected slices.

Known deviations: the image has the network's channels instead of RGB; every class has its own style layers (not 19);
γ and β are computed in closed form (`ace.py`), which changes the cost and not the result; where no perceptual features
are at hand, an L1 term replaces that loss (`Config.l1_weight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.bounds import BATCH, DEPTH, LEARNING_RATE, STEPS, WEIGHT, WIDTH, Bounds, Settings, bounded, choice
from nnunet_synth.errors import UserError
from nnunet_synth.losses.adversarial import HINGE
from nnunet_synth.progress import progress
from nnunet_synth.synthesizers.ace import ACE, Labels, labels_for, one_hot_of
from nnunet_synth.synthesizers.base import (
    Batch,
    Prepared,
    Slices,
    SliceSource,
    Stage,
    Synthesizer,
    SynthMeta,
    SynthRequest,
)
from nnunet_synth.synthesizers.blocks import (
    LEAK,
    add_spectral_norm,
    fold_spectral_norm,
    init_xavier,
    plain_state,
)
from nnunet_synth.synthesizers.conditional_stage import ConditionalStage
from nnunet_synth.synthesizers.patch_discriminator import MultiScaleDiscriminator
from nnunet_synth.synthesizers.style_encoder import StyleEncoder
from nnunet_synth.synthesizers.style_pool import MAX_CODES, MIN_TARGET_PIXELS, StyleCode, StylePool

MAX_CLASSES_WITH_OWN_FC = 20


@dataclass(frozen=True)
class SEANConfig(Settings):
    """SEAN's hyper-parameters; the defaults are those of the preset "default"."""

    ngf: int = bounded(32, WIDTH)  # width of the last block; it doubles with every halving of the resolution
    num_upsamplings: int = bounded(5, Bounds(low=2, high=10))    # H and W are padded to multiples of 2^this
    style_dim: int = bounded(512, Bounds(low=1, high=8192))      # F, length of a style code
    spade_hidden: int = bounded(64, WIDTH)  # channels between the two convolutions of the SPADE branch
    encoder_width: int = bounded(32, WIDTH)                      # of the style encoder's first layer
    style_fc: str = choice("auto", "per_class", "shared")       # per_class | shared | auto = shared from 20 classes on
    noise: bool = True                  # the noise of ACE, in training and in synthesis
    init_gain: float = bounded(0.02, Bounds(low=0, high=100, open_low=True))     # of the Xavier initialisation

    ndf: int = bounded(64, WIDTH)                                # width of the discriminator's first layer
    num_discriminator_layers: int = bounded(3, DEPTH)            # strided ones
    num_scales: int = bounded(2, Bounds(low=1, high=8))          # discriminators on the image and on its averaged half

    adversarial_weight: float = bounded(1.0, WEIGHT)
    feature_matching_weight: float = bounded(10.0, WEIGHT)
    perceptual_weight: float = bounded(10.0, WEIGHT)
    l1_weight: float | None = bounded(None, WEIGHT)  # None = 0 with perceptual features (the paper), 10 without

    num_steps: int = bounded(25_000, STEPS)
    batch_size: int = bounded(16, BATCH)
    generator_lr: float = bounded(1e-4, LEARNING_RATE)           # TTUR
    discriminator_lr: float = bounded(4e-4, LEARNING_RATE)


# ----------------------------------------------------------------------------------------------------------------------
# Networks


class ResidualBlock(nn.Module):
    """SPADE's residual block with ACE for normalisation: ACE, LeakyReLU, 3×3, twice; a learned 1×1 shortcut where the
    number of channels changes (ACE before it, no activation)."""

    def __init__(self, in_channels: int, out_channels: int, make_ace: Callable[[int], ACE]) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.ace_0, self.ace_1 = make_ace(in_channels), make_ace(middle)
        self.conv_0 = nn.Conv2d(in_channels, middle, 3, padding=1)
        self.conv_1 = nn.Conv2d(middle, out_channels, 3, padding=1)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.ace_s = make_ace(in_channels)
            self.conv_s = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, labels: Labels, codes: Tensor, noise: Iterator[Tensor | None]) -> Tensor:
        shortcut = self.conv_s(self.ace_s(x, labels, codes, next(noise))) if self.has_shortcut else x
        x = self.conv_0(F.leaky_relu(self.ace_0(x, labels, codes, next(noise)), LEAK))
        x = self.conv_1(F.leaky_relu(self.ace_1(x, labels, codes, next(noise)), LEAK))
        return shortcut + x

    @property
    def num_aces(self) -> int:
        return 3 if self.has_shortcut else 2

    @property
    def convolutions(self) -> list[nn.Module]:
        """Those of the trunk, which have spectral norm in training."""
        return [self.conv_0, self.conv_1, *([self.conv_s] if self.has_shortcut else [])]


class Decoder(nn.Module):
    """Dec: label map and style codes → image; residual blocks from the coarsest resolution up, ×2 nearest between."""

    def __init__(self, config: SEANConfig, num_classes: int, out_channels: int) -> None:
        super().__init__()
        shared_fc = config.style_fc == "shared" or (config.style_fc == "auto"
                                                    and num_classes >= MAX_CLASSES_WITH_OWN_FC)

        def block(in_channels: int, out_channels: int, style_dim: int = config.style_dim) -> ResidualBlock:
            return ResidualBlock(in_channels, out_channels, lambda channels: ACE(
                channels, num_classes, style_dim, config.spade_hidden, shared_fc))

        widths = [config.ngf * 2 ** level for level in reversed(range(config.num_upsamplings))]
        self.num_classes = num_classes
        self.num_upsamplings = config.num_upsamplings
        self.seed = nn.Conv2d(num_classes, widths[0], 3, padding=1)
        # One list of blocks for each resolution, coarsest first; the last block has no style branch.
        self.blocks = nn.ModuleList([
            nn.ModuleList([block(widths[0], widths[0])]),
            nn.ModuleList([block(widths[0], widths[0]), block(widths[0], widths[0])]),
            *(nn.ModuleList([block(before, after)]) for before, after in zip(widths, widths[1:-1], strict=False)),
            nn.ModuleList([block(widths[-2], widths[-1], style_dim=0)]),
        ])
        self.to_image = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, semantic: Tensor, codes: Tensor, noise: Tensor | None) -> Tensor:
        """Draw.

        Args:
            semantic: [N, H, W] int64, H and W multiples of 2^num_upsamplings.
            codes: [N, S, F], or [1, S, F] shared by all (in eval mode this takes the fast form of ACE).
            noise: [N, ≥ self.noise_size(H, W)] ~ N(0, 1), or None.

        Returns:
            [N, C, H, W] in (−1, 1).
        """
        is_shared = len(codes) == 1 and not self.training
        return self.decode(semantic, codes, noise, lambda *level: labels_for(*level, is_shared))

    def decode(self, semantic: Tensor, codes: Tensor, noise: Tensor | None,
               make_labels: Callable[[Tensor, int, torch.dtype], Labels]) -> Tensor:
        """`forward` with the form of ACE given."""
        levels = self.levels_of(semantic)
        maps = self._noise_maps(semantic, noise)
        x = self.seed(one_hot_of(levels[0], self.num_classes, codes.dtype))
        for number, (level, blocks) in enumerate(zip(levels, self.blocks, strict=True)):
            labels = make_labels(level, self.num_classes, codes.dtype)
            if number > 0:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            for block in blocks:
                x = block(x, labels, codes, maps)
        return torch.tanh(self.to_image(F.leaky_relu(x, LEAK)))

    def levels_of(self, semantic: Tensor) -> list[Tensor]:
        """The label map at each resolution (nearest), coarsest first."""
        return [semantic[:, ::2 ** level, ::2 ** level] for level in reversed(range(self.num_upsamplings + 1))]

    def _noise_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        return [(height >> level, width >> level)
                for level, blocks in zip(reversed(range(self.num_upsamplings + 1)), self.blocks, strict=True)
                for block in blocks for _ in range(block.num_aces)]

    def noise_size(self, height: int, width: int) -> int:
        """How many normal numbers one image needs (one map for each ACE)."""
        return sum(rows * columns for rows, columns in self._noise_shapes(height, width))

    def _noise_maps(self, semantic: Tensor, noise: Tensor | None) -> Iterator[Tensor | None]:
        shapes = self._noise_shapes(*semantic.shape[1:])
        if noise is None:
            return iter([None] * len(shapes))
        sizes = [rows * columns for rows, columns in shapes]
        pieces = noise[:, :sum(sizes)].split(sizes, dim=1)
        return iter([piece.unflatten(1, (1, *shape)) for piece, shape in zip(pieces, shapes, strict=True)])

    def trunk(self) -> list[nn.Module]:
        """The convolutions that have spectral norm in training."""
        return [convolution for blocks in self.blocks for block in blocks for convolution in block.convolutions]


class Generator(nn.Module):
    """Enc and Dec, trained together: an image is redrawn from its own label map and its own style codes."""

    def __init__(self, config: SEANConfig, num_classes: int, num_channels: int) -> None:
        super().__init__()
        self.encoder = StyleEncoder(num_channels, config.encoder_width, config.style_dim)
        self.decoder = Decoder(config, num_classes, num_channels)
        init_xavier(self, config.init_gain)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, semantic: Tensor, one_hot: Tensor, valid: Tensor, noise: Tensor | None) -> Tensor:
        return self.decoder(semantic, self.encoder(image, one_hot, valid), noise)


# ----------------------------------------------------------------------------------------------------------------------
# The synthesizer


class SEAN(Synthesizer):
    """Label → image, in the averaged style of K labelled slices, or in the style of the request's own image."""

    name = "sean"
    Config = SEANConfig
    PRESETS = {
        # Learns within a few hundred steps on a CPU, hence the larger initial weights and generator's learning rate.
        # The discriminator is the slower one: otherwise the generator learns texture before it has learned the labels;
        # a smaller L1 weight leaves it some texture to learn.
        "tiny": SEANConfig(ngf=8, num_upsamplings=3, style_dim=64, spade_hidden=16, encoder_width=4, init_gain=0.5,
                           ndf=16, l1_weight=3.0, num_steps=1_500, batch_size=8, generator_lr=1e-3,
                           discriminator_lr=2e-4),
        "default": SEANConfig(),
        "paper": SEANConfig(ngf=64, spade_hidden=128, batch_size=32),
    }

    def __init__(self, meta: SynthMeta, config: SEANConfig) -> None:
        super().__init__(meta, config)
        self.generator = Generator(config, len(meta.semantic), len(meta.channel_names))
        self.pool = StylePool(len(meta.semantic), config.style_dim)
        # SC_ref of the current mini-batch, and which classes have a style at all.
        self.register_buffer("reference", None, persistent=False)
        self.register_buffer("has_style", None, persistent=False)

    @classmethod
    def build(cls, meta: SynthMeta, config: SEANConfig) -> SEAN:
        return cls(meta, config)

    @property
    def divisor(self) -> int:
        return 2 ** self.config.num_upsamplings

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image"}) if self.style.source == "self" else frozenset()

    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        return [SEANStage(self, self.config.num_steps if steps is None else steps, perceptual)]

    # -- saved weights -----------------------------------------------------------------------------------------------

    def export_state(self) -> dict[str, Tensor]:
        """The weights of Enc and Dec, spectral norms folded."""
        return plain_state(self)

    def load_exported(self, state: dict[str, Tensor]) -> None:
        fold_spectral_norm(self)
        super().load_exported(state)

    # -- style -------------------------------------------------------------------------------------------------------

    def _encode(self, request: Prepared) -> Tensor:
        """Codes [N, S, F] of the request's own images."""
        one_hot = self.meta.semantic.one_hot(request.semantic, request.image.dtype)
        return self.generator.encoder(request.image, one_hot, request.valid)

    def _count_pixels(self, request: Prepared, every: int) -> Tensor:
        """[N, S] valid pixels of each class among every `every`-th in each direction."""
        semantic, valid = (part[:, ::every, ::every] for part in (request.semantic, request.valid))
        return torch.stack([((semantic == index) & valid).sum((1, 2)) for index in range(len(self.meta.semantic))], 1)

    @torch.no_grad()
    def fit_pool(self, slices: SliceSource) -> None:
        """Eq. 1: the codes of the labelled slices that contain a target label (`pool_positive`, N⁺) or of all (`pool`).

        Raises:
            UserError: no slice qualifies.
        """
        assert not self.training, "call eval() on the synthesizer first"
        if self.style.source == "self":
            return
        only_targets = self.style.source == "pool_positive"
        labelled = progress(slices.iterate(only_targets=only_targets, max_slices=MAX_CODES), "collecting style codes")
        styles = [style for one in labelled if (style := self._style_of(one, only_targets)) is not None]
        if not styles:
            wanted = (f"at least {MIN_TARGET_PIXELS * StyleEncoder.stride ** 2} pixels of a target label"
                      if only_targets else "any annotated pixel")
            raise UserError(f"no labelled training slice of fold {self.meta.fold} has {wanted}, so there is no style "
                            "to draw: choose another fold, or set style_source to pool or self")
        self.pool.fill(styles[:MAX_CODES])

    def _style_of(self, one: Slices, only_targets: bool) -> StyleCode | None:
        """The slice's code, or None where it has no place in the pool."""
        one = one.to(self.pool.codes.device)
        prepared = self._prepare(SynthRequest(label=one.label, image=one.image, layout=one.layout, valid=one.valid))
        pixels = self._count_pixels(prepared, StyleEncoder.stride)[0]
        if only_targets and not (pixels[self._target_classes] >= MIN_TARGET_PIXELS).any():
            return None
        return StyleCode(self._encode(prepared)[0], pixels > 0, one.origin[0])

    @property
    def _target_classes(self) -> list[int]:
        return [self.meta.semantic.label_classes[str(label)] for label in self.meta.target_labels]

    def pool_definition(self) -> dict[str, Any]:
        return {"source": self.style.source, "number": len(self.pool), "sha256": self.pool.sha256()}

    def begin_step(self, generator: torch.Generator | None) -> None:
        """Eq. 2: draw K codes of the pool without replacement (all of them where it has fewer) and average them."""
        if self.style.source == "self":
            return
        if len(self.pool) == 0:
            raise RuntimeError("call fit_pool before begin_step")
        indices = self.pool.draw(self.style.num_styles, generator)
        self.reference, self.has_style = self.pool.average(indices, self.style.average)

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _decode(self, request: Prepared) -> Tensor:
        return self.generator.decoder(request.semantic, self._codes_for(request), self._draw_noise(request))

    def _codes_for(self, request: Prepared) -> Tensor:
        """[1, S, F] where all images share SC_ref; [N, S, F] where they need styles of their own."""
        if self.style.source == "self":
            return self._encode(request)
        if self.reference is None:
            raise RuntimeError("call begin_step before synthesize")
        reference = self.reference[None]
        if request.image is None or not self._lacks_style(request).any():
            return reference
        # A class that no labelled slice has: the image's own style is all there is.
        return torch.where(self.has_style[:, None], reference, self._encode(request))

    def _lacks_style(self, request: Prepared) -> Tensor:
        """[N, S] bool: the class is to be drawn, and not in the style of the pool."""
        asked = self._count_pixels(request, every=1) > 0
        return asked if self.style.source == "self" else asked & ~self.has_style

    def _is_drawable(self, request: Prepared) -> Tensor:
        lacking = self._lacks_style(request)
        if request.image is not None:       # its own style may do, where it has one
            lacking = lacking & (self._count_pixels(request, StyleEncoder.stride) == 0)
        return ~lacking.any(1)

    def _draw_noise(self, request: Prepared) -> Tensor | None:
        """All the noise of a call at once, a row for each image; none without a generator."""
        if not self.config.noise or request.generator is None:
            return None
        number, height, width = request.semantic.shape
        size = -(-self.generator.decoder.noise_size(height, width) // 16) * 16      # torch fills rows of 16 alike
        return torch.randn(number, size, generator=request.generator, device=request.semantic.device)


# ----------------------------------------------------------------------------------------------------------------------
# Training


class SEANStage(ConditionalStage):
    """SEAN's only stage: redraw labelled slices from their own codes; hinge + 10·feature matching + 10·perceptual."""

    adversarial = HINGE

    def __init__(self, sean: SEAN, num_steps: int, perceptual: nn.Module | None) -> None:
        config = sean.config
        discriminator = MultiScaleDiscriminator(len(sean.meta.semantic) + len(sean.meta.channel_names), config.ndf,
                                                config.num_discriminator_layers, config.num_scales, spectral=True,
                                                widened=False)
        super().__init__(sean, sean.generator, discriminator, num_steps, perceptual)
        add_spectral_norm(self.generator.decoder.trunk())
        init_xavier(self.discriminator, config.init_gain)

    def draw(self, batch: Batch, one_hot: Tensor) -> Tensor:
        return self.generator(batch["image"], batch["semantic"], one_hot, batch["valid"],
                              self._draw_noise(batch["image"]))

    def _draw_noise(self, real: Tensor) -> Tensor | None:
        if not self.config.noise:
            return None
        return torch.randn(len(real), self.generator.decoder.noise_size(*real.shape[2:]), device=real.device)
