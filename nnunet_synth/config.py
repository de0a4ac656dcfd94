"""Hyper-parameters of the trainers: what may stand in the `nnunet_synth` block of a plans configuration.

`nnunet_synth configure` writes such blocks, the trainers read them. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nnunet_synth.bounds import (
    BATCH,
    COUNT,
    COUNT_OR_NONE_AT_ALL,
    DECAY,
    FRACTION,
    LEARNING_RATE,
    PROBABILITY,
    SEED,
    WEIGHT,
    Bounds,
    Settings,
    bounded,
    choice,
)
from nnunet_synth.errors import UserError


@dataclass(frozen=True)
class TrainerConfig(Settings):
    """All hyper-parameters of the semi-supervised trainers; the defaults are SA-CPS with nnU-Net's schedule.

    Attributes:
        synthesizer: registered name.
        synthesizer_from: a folder (…/fold_0) to load the synthesizer from; None = the one pretrained for this fold
            under this configuration, then along its `inherits_from` chain.
        synthesizer_checkpoint: which of its models: final, one that was kept in training (step_001250), or best = the
            one that nnunet_synth select ranked before the others of this synthesizer.
        synthesizer_preset, synthesizer_options: what `nnunet_synth pretrain` is asked for when there is none yet.
        num_styles: K of SA-CPS Eq. 2, style codes averaged a mini-batch.
        style_source: where the codes come from: labelled training slices with infection (N+), all of them (N), or the
            unlabelled image itself (SA-CPS Fig. 8).
        style_average: mean over those of the K codes that have the class, or the paper's plain mean.
        augment_synthetic: nnU-Net's intensity augmentation on synthetic images, or none (the paper).
        mask_outside_layout: ignore everything outside the layout (the paper: the lungs).
        label_source: what labels a synthetic image: the pseudo-label it was drawn from, or the synthesizer's own
            segmentation head.
        synthetic_accept_threshold: lowest probability of being real (by the classifier of nnunet_synth select) of a
            synthetic image that is used; None = all are.
        pseudo_weight, synthetic_weight: λ of SA-CPS Eq. 14 and μ of SA-ST Eq. 18.
        confidence_threshold: τ of Eq. 9, for region-based labels (softmax labels use the argmax).
        ramp_up_epochs: epochs of sigmoid ramp-up of the weights of all unlabelled terms; 0 = none, None = as in the
            trainer's paper (SA-CPS, SA-ST: none).
        consistency_weight: of the unlabelled term of a competitor; None = as in its paper.
        ema_decay: α of the averaged teacher (mean teacher, UA-MT).
        input_noise: standard deviation, in normalised intensities, of the noise on a teacher's input, cut off at two.
        uncertainty_passes: T, stochastic passes of the teacher that tell its uncertainty (UA-MT).
        teacher_dropout: rate of dropout in these passes.
        weak_view_confidence: τ, the lowest probability of a label that teaches the strong views (UniMatch).
        feature_dropout: rate of the dropout of whole channels between encoder and decoder (UniMatch, CCT, UDC).
        cases_at_a_time: K, unlabelled cases that get pseudo-labels together (Semi-Inf-Net).
        labels_only_share: share of the training before the first of them do.
        ensemble_decay: α of the average over epochs (self-ensembling).
        num_auxiliary_decoders: K, each with its own kind of perturbed features, in turn (CCT, UDC).
        batch_size: labelled samples a step; None = the plan's.
        unlabelled_batch_size: None = as many as labelled ones (the paper).
        pool_slices: draw unlabelled slices that hold some layout, or all.
        teacher: results folder of the teacher of self-training, by name (SACPSTrainer__nnUNetPlans__2d) or path; None =
            stock nnUNetTrainer under this configuration, then along its `inherits_from` chain.
        num_rounds: rounds of teacher ← student of self-training, each as long as a training.
        epochs_over_unlabelled: length of the training in passes over the unlabelled stream; None = `num_epochs`.
        augmentation: where nnU-Net's training augmentation of both streams is done: sample by sample in the loader's
            workers (cpu), or batched on the device of the training (device), where too few cores feed a fast GPU.
        seed: of weights, loaders, augmentation and style draws; None = not seeded, as nnU-Net.
        preview_every: epochs between preview pictures; 0 = never.
        momentum: of SGD with Nesterov's correction.
        num_epochs … enable_deep_supervision: nnU-Net's own attributes; None = nnU-Net's values.
    """

    synthesizer: str = "sean"
    synthesizer_from: str | None = None
    synthesizer_checkpoint: str = "final"
    synthesizer_preset: str = "default"
    synthesizer_options: Mapping[str, Any] = field(default_factory=dict)
    num_styles: int = bounded(10, BATCH)
    style_source: str = choice("pool_positive", "pool", "self")
    style_average: str = choice("present_only", "paper")
    augment_synthetic: str = choice("intensity", "none")
    mask_outside_layout: bool = False
    label_source: str = choice("pseudo", "head")
    synthetic_accept_threshold: float | None = bounded(None, FRACTION)

    pseudo_weight: float = bounded(0.5, WEIGHT)
    synthetic_weight: float = bounded(0.5, WEIGHT)
    confidence_threshold: float = bounded(0.5, PROBABILITY)
    ramp_up_epochs: int | None = bounded(None, COUNT_OR_NONE_AT_ALL)

    consistency_weight: float | None = bounded(None, WEIGHT)
    ema_decay: float = bounded(0.99, DECAY)
    input_noise: float = bounded(0.1, WEIGHT)
    uncertainty_passes: int = bounded(8, COUNT)
    teacher_dropout: float = bounded(0.5, DECAY)
    weak_view_confidence: float = bounded(0.95, DECAY)
    feature_dropout: float = bounded(0.5, DECAY)
    ensemble_decay: float = bounded(0.6, DECAY)
    num_auxiliary_decoders: int = bounded(5, Bounds(low=1, high=64))
    cases_at_a_time: int = bounded(5, COUNT)
    labels_only_share: float = bounded(0.3, DECAY)

    batch_size: int | None = bounded(None, BATCH)
    unlabelled_batch_size: int | None = bounded(None, BATCH)
    pool_slices: str = choice("layout", "all")

    teacher: str | None = None
    num_rounds: int = bounded(1, COUNT)
    epochs_over_unlabelled: int | None = bounded(None, COUNT)
    augmentation: str = choice("cpu", "device")
    seed: int | None = bounded(None, SEED)
    preview_every: int = bounded(10, COUNT_OR_NONE_AT_ALL)

    momentum: float = bounded(0.99, DECAY)
    num_epochs: int | None = bounded(None, COUNT)
    num_iterations_per_epoch: int | None = bounded(None, COUNT)
    num_val_iterations_per_epoch: int | None = bounded(None, COUNT)
    initial_lr: float | None = bounded(None, LEARNING_RATE)
    weight_decay: float | None = bounded(None, WEIGHT)
    oversample_foreground_percent: float | None = bounded(None, FRACTION)
    probabilistic_oversampling: bool | None = None
    save_every: int | None = bounded(None, COUNT)
    enable_deep_supervision: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_epochs is not None and self.epochs_over_unlabelled is not None:
            raise UserError("num_epochs and epochs_over_unlabelled are both set; set one of them to null")

    @classmethod
    def from_plans_configuration(cls, block: Mapping[str, Any]) -> TrainerConfig:
        """The hyper-parameters of the `nnunet_synth` block of a plans configuration ({} = all defaults).

        Raises:
            UserError: a key is unknown (the closest and all known ones are named), or a value has the wrong type or
                is out of its range.
        """
        known = [setting.name for setting in fields(cls)]
        for key in block:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise UserError(f"unknown hyper-parameter {key!r}; {hint}known: {', '.join(known)}")
        return cls(**block)

    def to_json(self) -> dict[str, Any]:
        """The block that `from_plans_configuration` reads: every hyper-parameter that is not left to nnU-Net."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def trainer_attributes(self) -> dict[str, Any]:
        """Attributes of `nnUNetTrainer` to set: those that are not left to nnU-Net."""
        return {key: getattr(self, key) for key in NNUNET_ATTRIBUTES if getattr(self, key) is not None}


NNUNET_ATTRIBUTES = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr",
                     "weight_decay", "oversample_foreground_percent", "probabilistic_oversampling", "save_every",
                     "enable_deep_supervision")

# What the SA-CPS paper does beyond λ, τ, K and equal batches (§IV-A): the default leaves it to nnU-Net.
# 20 epochs are those of COVID-19-20; MosMedData has 10.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "momentum": 0.9,
        "epochs_over_unlabelled": 20,
        "style_average": "paper",
        "mask_outside_layout": True,
        "augment_synthetic": "none",
        "synthesizer_preset": "paper",      # ngf 64
    },
}
