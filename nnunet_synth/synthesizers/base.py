"""What every synthesizer is to the rest of the house: one call to draw images, and a list of stages to train it.

Nothing in this room knows nnU-Net, a path, a device flag or a command line. Images arrive in the intensity space of
the segmentation network (nnU-Net-normalised) and leave in it; inside, a synthesizer works in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.mixed_precision import autocast
from nnunet_synth.synthesizers.meta_checks import check_meta
from nnunet_synth.synthesizers.semantic import SemanticClasses

FORMAT_VERSION = 1


# ----------------------------------------------------------------------------------------------------------------------
# What a synthesizer was trained on


@dataclass(frozen=True)
class SynthMeta:
    """All that must match before a synthesizer may be used; stored as `meta.json` beside the weights."""

    synthesizer: str
    config: dict[str, Any]
    dataset: str
    channel_names: list[str]
    semantic: SemanticClasses
    target_labels: list[int]                    # dataset labels that count as "infection" in N+ (Eq. 1)
    intensity_range: list[list[float]]          # per channel [lo, hi] in the network's intensity space
    patch_size: list[int]                       # [H, W] of the training crops (of the whole montage)
    divisor: int
    fold: int | str
    train_case_ids: list[str]
    fingerprint_sha256: str = ""
    plans_sha256: str = ""                      # normalisation, transpose and spacing only
    split_sha256: str = ""
    spacing: list[float] = field(default_factory=list)
    montage: list[int] = field(default_factory=list)    # [rows, columns] of slices in an image, [] = one slice
    preset: str = "default"
    perceptual: str = "off"                     # which features the perceptual loss used
    steps: int = 0
    seed: int = 0
    package_version: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> SynthMeta:
        """Raises UserError when the content was written by another version, lacks a field or holds what cannot be."""
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(f"meta.json has format_version {content.get('format_version')}, this version reads "
                            f"{FORMAT_VERSION}: pretrain the synthesizer again")
        try:
            meta = cls(**{**content, "semantic": SemanticClasses(**content["semantic"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"meta.json is not a synthesizer's: {error}") from error
        check_meta(meta)
        return meta

    def with_metrics(self, **metrics: Any) -> SynthMeta:
        return replace(self, metrics={**self.metrics, **metrics})


# ----------------------------------------------------------------------------------------------------------------------
# Slices to learn from


@dataclass(frozen=True)
class Slices:
    """A batch of clean, nnU-Net-normalised slices.

    Attributes:
        image: [N, C, H, W] float32, in the network's intensity space.
        label: [N, H, W] int64, the dataset's integer labels (never regions; ignored pixels are 0 and not valid).
        layout: [N, H, W] int64 anatomy, 0 = none.
        valid: [N, H, W] bool, False where nnU-Net padded or the annotator was told to ignore.
        origin: (case id, index along the slice axis) of each slice.
        cluster: [N, H, W] int64 cached cluster ids, 0 = none; None = nobody looked.
    """

    image: Tensor
    label: Tensor
    layout: Tensor
    valid: Tensor
    origin: list[tuple[str, int]]
    cluster: Tensor | None = None

    def to(self, device: torch.device) -> Slices:
        cluster = None if self.cluster is None else self.cluster.to(device)
        return replace(self, image=self.image.to(device), label=self.label.to(device),
                       layout=self.layout.to(device), valid=self.valid.to(device), cluster=cluster)

    def request(self, generator: torch.Generator | None = None) -> SynthRequest:
        """Draw these labels anew, in the anatomy of these slices."""
        return SynthRequest(label=self.label, image=self.image, layout=self.layout, cluster=self.cluster,
                            valid=self.valid, generator=generator)


class SliceSource(Protocol):
    """Labelled training slices, handed in by those who know where they lie (`data/slices.py`)."""

    def sample(self, num_slices: int, patch_size: tuple[int, int], rng: np.random.Generator) -> Slices:
        """Random crops: half of them from slices with a target label, flips and mild rotation and scaling."""
        ...

    def iterate(self, only_targets: bool, max_slices: int | None = None) -> Iterator[Slices]:
        """Whole clean slices, one at a time ([1, …]), in a fixed order; `only_targets` = those of N+."""
        ...

    def unlabelled(self) -> SliceSource | None:
        """Unlabelled training slices: label 0 everywhere, never targets; None = there are none."""
        ...


# ----------------------------------------------------------------------------------------------------------------------
# Inference


@dataclass(frozen=True)
class SynthRequest:
    """What to draw. `*sp` is [H, W], or [D, H, W] for 3D patches, whose slices are folded into the batch.

    Attributes:
        label: [N, *sp] int64 dataset labels (regions are converted before).
        image: [N, C, *sp] the unlabelled image in the network's intensity space, for those that `need` it.
        layout: [N, *sp] int64 anatomy (0 = none); the label overrides it.
        cluster: [N, *sp] int64 precomputed superpixel or cluster ids (0 = none).
        valid: [N, *sp] bool, False on nnU-Net's padding.
        generator: source of all randomness of this call; its device is that of the tensors.
    """

    label: Tensor
    image: Tensor | None = None
    layout: Tensor | None = None
    cluster: Tensor | None = None
    valid: Tensor | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class SynthResult:
    """What was drawn; every tensor is detached and owns its storage.

    Attributes:
        image: [N, C, *sp] float32 in the network's intensity space.
        label: [N, *sp] int64, the label that describes `image`.
        ok: [N] bool; False = this sample must not enter the synthetic loss.
        aux: for logging only.
    """

    image: Tensor
    label: Tensor
    ok: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A request after folding, padding and mapping: what `_decode` sees. All 2D, [N, …, H, W], H and W divisible."""

    semantic: Tensor                    # [N, H, W] int64 semantic classes
    label: Tensor                       # [N, H, W] int64 dataset labels
    layout: Tensor                      # [N, H, W] int64
    image: Tensor | None                # [N, C, H, W] in [-1, 1]
    cluster: Tensor | None              # [N, H, W] int64
    valid: Tensor                       # [N, H, W] bool
    generator: torch.Generator | None


@dataclass(frozen=True)
class StyleOptions:
    """Where the style comes from (SA-CPS Eq. 1–2, Fig. 8)."""

    num_styles: int = 10                # K
    source: str = "pool_positive"       # pool_positive (N+) | pool (N) | self
    average: str = "present_only"       # present_only | paper (plain mean)

    SOURCES: ClassVar[tuple[str, ...]] = ("pool_positive", "pool", "self")
    AVERAGES: ClassVar[tuple[str, ...]] = ("present_only", "paper")

    def __post_init__(self) -> None:
        if self.source not in self.SOURCES:
            raise UserError(f"style_source {self.source!r} is unknown; known: {', '.join(self.SOURCES)}")
        if self.average not in self.AVERAGES:
            raise UserError(f"style_average {self.average!r} is unknown; known: {', '.join(self.AVERAGES)}")
        if self.num_styles < 1:
            raise UserError(f"num_styles is {self.num_styles}, it must be at least 1")


class Trainable(nn.Module, ABC):
    """What the one training loop trains and a checkpoint folder holds: a synthesizer, or a source of masks.

    Subclasses set `name`, `Config` (a frozen dataclass), `PRESETS`, and implement `build`, `divisor` and `stages`.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    PRESETS: ClassVar[dict[str, Any]]
    takes_feature_set: ClassVar[bool] = False       # its loss looks through two networks, see `feature_set.py`
    max_patch: ClassVar[int | None] = None          # longest side of its training crops, unless another is asked for

    def __init__(self, meta: SynthMeta, config: Any) -> None:
        super().__init__()
        self.meta = meta
        self.config = config

    @classmethod
    @abstractmethod
    def build(cls, meta: SynthMeta, config: Any) -> Trainable:
        """A new, untrained one."""

    @property
    @abstractmethod
    def divisor(self) -> int:
        """H and W are multiples of this; what a synthesizer draws is padded to them."""

    def check_patch_size(self) -> None:
        """Raises UserError where training patches would have to be padded."""
        if any(size % self.divisor for size in self.meta.patch_size):
            raise UserError(f"patch size {self.meta.patch_size} is no multiple of {self.divisor}: choose another")

    def prepare_training(self, slices: SliceSource) -> None:
        """Called before a training, with what its stages will sample from: to choose from it once, or to refuse it.
        Doing it again changes nothing. Raises UserError."""

    @abstractmethod
    def stages(self, steps: int | None = None, perceptual: nn.Module | None = None) -> list[Stage]:
        """The stages of its training, in order. `steps` overrides the preset's total number of steps;
        `perceptual` maps images in [-1, 1] to a list of feature maps, None = no perceptual loss; a `FeatureSet` where
        it `takes_feature_set`."""

    # -- saved weights -----------------------------------------------------------------------------------------------

    def export_state(self) -> dict[str, Tensor]:
        """What `model.safetensors` holds: all that inference needs and nothing that only training does, as contiguous
        tensors that share no storage with the module."""
        return {name: tensor.detach().clone().contiguous() for name, tensor in self.state_dict().items()}

    def load_exported(self, state: dict[str, Tensor]) -> None:
        """Take the weights that `export_state` gave; from then on it is for inference.

        Raises:
            RuntimeError: a tensor is missing, unknown or of another shape.
        """
        self.load_state_dict(state, strict=True)

    # -- intensities -------------------------------------------------------------------------------------------------

    def to_unit(self, image: Tensor) -> Tensor:
        """[N, C, …] network intensities → [-1, 1], clamped (synthesizers.md §10.3)."""
        lo, hi = self._intensity_bounds(image)
        return (2 * (image - lo) / (hi - lo) - 1).clamp(-1, 1)

    def from_unit(self, image: Tensor) -> Tensor:
        """[N, C, …] in [-1, 1] → network intensities within [lo, hi]."""
        lo, hi = self._intensity_bounds(image)
        return lo + (image + 1) / 2 * (hi - lo)

    def _intensity_bounds(self, image: Tensor) -> tuple[Tensor, Tensor]:
        bounds = torch.tensor(self.meta.intensity_range, dtype=image.dtype, device=image.device)
        bounds = bounds.view(1, -1, 2, *(1,) * (image.ndim - 2))
        return bounds[:, :, 0], bounds[:, :, 1]


class Synthesizer(Trainable):
    """Draws images that fit labels.

    Subclasses also implement `fit_pool`, `begin_step` and `_decode`.
    """

    max_patch = 256                             # it draws any size
    drawing_options: ClassVar[tuple[str, ...]] = ()     # of its configuration: what may be changed after training
    max_slices_per_call: ClassVar[int] = 64     # 3D patches and large batches are decoded in chunks of this

    def __init__(self, meta: SynthMeta, config: Any) -> None:
        super().__init__(meta, config)
        self.style = StyleOptions()
        self.label_source = "pseudo"    # or "head": what `SynthResult.label` is, where there is a label head
        self.variant: int | None = None     # which of its `variants` draws; None = `begin_step` chooses

    # -- what a subclass provides ------------------------------------------------------------------------------------

    @property
    def variants(self) -> list[int]:
        """Numbers of the networks that it has to choose from, one for each mini-batch."""
        return [0]

    @property
    def needs(self) -> frozenset[str]:
        """Which optional parts of a request it cannot do without: any of image, layout, cluster."""
        return frozenset()

    def fit_pool(self, slices: SliceSource) -> None:
        """Collect what style is drawn from (style codes, references). Called once, in eval mode."""

    def pool_definition(self) -> dict[str, Any]:
        """JSON that identifies the fitted pool; a resumed run must find the same."""
        return {}

    def begin_step(self, generator: torch.Generator | None) -> None:
        """Draw what one whole mini-batch shares (the K codes of Eq. 2)."""

    @abstractmethod
    def _decode(self, request: Prepared) -> Tensor:
        """[N, C, H, W] in [-1, 1]: the only part that is compiled."""

    @property
    def has_label_head(self) -> bool:
        """Whether it can tell which label its image shows (`_decode_with_label`)."""
        return False

    def _decode_with_label(self, request: Prepared) -> tuple[Tensor, Tensor]:
        """`_decode`'s image, and [N, H, W] int64 the dataset label that a head of this synthesizer sees in it."""
        raise NotImplementedError(f"{self.name} has no segmentation head")

    def _is_drawable(self, request: Prepared) -> Tensor:
        """[N] bool: False where a needed style does not exist."""
        return torch.ones(len(request.semantic), dtype=torch.bool, device=request.semantic.device)

    # -- the one call ------------------------------------------------------------------------------------------------

    @final
    @torch.no_grad()
    def synthesize(self, request: SynthRequest) -> SynthResult:
        """Draw one image for each label. Never in the autograd graph, always in eval mode (batch statistics would
        let the companions in a batch leak into each other).

        Raises:
            UserError: the request lacks what the synthesizer `needs`, or `label_source` is a head that it lacks.
        """
        assert not self.training, "call eval() on the synthesizer first"
        self.check_label_source()
        for part in self.needs:
            if getattr(request, part) is None:
                raise UserError(f"synthesizer {self.name} needs the {part} of the unlabelled image")

        spatial = request.label.shape[1:]
        flat = _fold_slices(request)
        chunks = [self._synthesize_chunk(_select(flat, slice(start, start + self.max_slices_per_call)))
                  for start in range(0, len(flat.label), self.max_slices_per_call)]
        image, label, drawable = (torch.cat(parts) for parts in zip(*chunks, strict=True))

        num_samples = len(request.label)
        if len(spatial) == 3:
            image = image.unflatten(0, (num_samples, spatial[0])).transpose(1, 2).contiguous()
        # A 3D sample is usable only when each of its slices is.
        return SynthResult(image=image, label=label.view_as(request.label), ok=drawable.view(num_samples, -1).all(1))

    def check_label_source(self) -> None:
        """Raises UserError where `label_source` is a head that this synthesizer does not have."""
        if self.label_source == "head" and not self.has_label_head:
            raise UserError(f"label_source head needs a synthesizer with a segmentation head, {self.name} has none: "
                            "set it to pseudo")

    def _synthesize_chunk(self, request: SynthRequest) -> tuple[Tensor, Tensor, Tensor]:
        prepared = self._prepare(request)
        height, width = request.label.shape[1:]
        with autocast(request.label.device, torch.bfloat16):
            if self.label_source == "head":
                drawn, seen = self._decode_with_label(prepared)
                label = torch.where(prepared.valid, seen, prepared.label)[:, :height, :width].contiguous()
            else:
                drawn, label = self._decode(prepared), request.label.clone()
        image = self.from_unit(drawn[..., :height, :width].float())
        if request.valid is not None:
            # Outside the scanned area (padding, masked background) the synthetic image is what the real one is.
            outside = torch.zeros_like(image) if request.image is None else request.image.to(image.dtype)
            image = torch.where(request.valid[:, None], image, outside)
        return image.contiguous(), label, self._is_drawable(prepared)

    def _prepare(self, request: SynthRequest) -> Prepared:
        label = request.label
        layout = torch.zeros_like(label) if request.layout is None else request.layout
        valid = torch.ones_like(label, dtype=torch.bool) if request.valid is None else request.valid
        height, width = label.shape[1:]
        padding = (0, -width % self.divisor, 0, -height % self.divisor)

        def pad(tensor: Tensor, value: float = 0) -> Tensor:
            return F.pad(tensor, padding, value=value)

        image = None if request.image is None else pad(self.to_unit(request.image), value=-1)
        cluster = None if request.cluster is None else pad(request.cluster)
        label, layout = pad(label), pad(layout)
        return Prepared(semantic=self.meta.semantic.combine(label, layout), label=label, layout=layout, image=image,
                        cluster=cluster, valid=pad(valid, value=False), generator=request.generator)


def _fold_slices(request: SynthRequest) -> SynthRequest:
    """Fold the slices of 3D patches into the batch; 2D requests stay as they are."""
    if request.label.ndim == 3:
        return request

    def fold(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.flatten(0, 1)

    image = None if request.image is None else request.image.transpose(1, 2).flatten(0, 1)
    return replace(request, label=request.label.flatten(0, 1), image=image, layout=fold(request.layout),
                   cluster=fold(request.cluster), valid=fold(request.valid))


def _select(request: SynthRequest, chunk: slice) -> SynthRequest:
    def take(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[chunk]

    return replace(request, label=request.label[chunk], image=take(request.image), layout=take(request.layout),
                   cluster=take(request.cluster), valid=take(request.valid))


# ----------------------------------------------------------------------------------------------------------------------
# Training

Batch = dict[str, Tensor]
Terms = dict[str, Tensor]       # named parts of a loss, detached, for the log


class Stage(ABC):
    """One stage of a training; `pretrain.py` runs them one after another and knows no method.

    A step is: `batch = sample(…)`; `begin_step(number)`; `generator_loss(batch)` → backward → step of the generator's
    optimizer; `discriminator_loss(batch)` → backward → step of the discriminator's. The fake images that
    `generator_loss` drew are left, detached, in the batch (key "fake"), so that the discriminator need not draw them
    again.
    """

    name: str
    generator: nn.Module                    # what this stage trains and averages (EMA); all else is frozen
    discriminator: nn.Module | None = None
    num_steps: int
    batch_size: int
    betas: tuple[float, float] = (0.0, 0.9)
    kept_shares: tuple[float, ...] = ()     # of its steps, after which the model stays on disk beside the final one

    @abstractmethod
    def learning_rates(self, step: int) -> tuple[float, float]:
        """(generator's, discriminator's) learning rate at `step` of this stage."""

    @abstractmethod
    def sample(self, slices: SliceSource, rng: np.random.Generator) -> Batch:
        """One mini-batch, on the CPU."""

    def begin_step(self, step: int) -> None:
        """Called before the losses of each step, for what changes with its number (a fade-in)."""

    @abstractmethod
    def generator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """The loss to minimise over `generator`; adds batch["fake"]."""

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """The loss to minimise over `discriminator`."""
        raise NotImplementedError(f"stage {self.name} has no discriminator")

    def on_end(self) -> None:
        """Called once, after the averaged (EMA) weights were put in place."""
