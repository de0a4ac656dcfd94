"""Mean teacher: the student must agree with the average of its own past weights, where that average is certain.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017 (MeanTeacherTrainer); with uncertainty: Yu et
al., Uncertainty-Aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation, MICCAI 2019 (UAMTTrainer).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_synth.losses.consistency import entropy, highest_entropy, squared_difference
from nnunet_synth.losses.segmentation import PseudoLabels, agreement, foreground_fraction
from nnunet_synth.trainers.averaged import AveragedNetwork
from nnunet_synth.trainers.loss_terms import Loss, finest, split_outputs
from nnunet_synth.trainers.perturbations import check_is_unet, feature_dropout, with_input_noise
from nnunet_synth.trainers.preview import PreviewSample
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer, sigmoid_ramp_up

# ----------------------------------------------------------------------------------------------------------------------
# The step


@dataclass(frozen=True)
class Taught:
    """What a teacher says of a batch; without gradient.

    Attributes:
        logits: [N, heads, …].
        certain: [N, 1, …] bool, or [N, R, …] of regions; None = it is certain everywhere.
    """

    logits: Tensor
    certain: Tensor | None = None


def mean_teacher_step(student: nn.Module, x_l: Tensor, y_l: Tensor | list[Tensor], x_u: Tensor, *,
                      teach: Callable[[Tensor], Taught], loss: Loss, pseudo_labels: PseudoLabels,
                      backward: Callable[[Tensor], None], consistency_weight: float,
                      autocast: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Any]:
    """Accumulate the gradient of L_s + λ L_c in the student.

    L_c is taken over labelled and unlabelled samples at full resolution: the mean of ‖f′ − f‖² where the teacher is
    certain (UA-MT Eq. 2 and 3; mean teacher: everywhere).

    Args:
        student: may be wrapped in DistributedDataParallel.
        teach: what the teacher says of x.
        loss: L_s, with deep supervision.
        backward: scales, if need be, and backpropagates.
        consistency_weight: λ at this time.

    Returns:
        Detached scalars "loss", "loss_supervised", "loss_consistency", "certain" (share of the pixels); labels "y_s",
        "y_t" [B, …] of x_u by student and teacher.
    """
    x = torch.cat([x_l, x_u])
    with autocast():
        with torch.no_grad():
            taught = teach(x)
        outputs = student(x)
        supervised = loss(split_outputs(outputs, len(x_l))[0], y_l)
    logits = finest(outputs)
    consistency = squared_difference(pseudo_labels.probabilities(logits), pseudo_labels.probabilities(taught.logits),
                                     taught.certain)
    total = supervised + consistency_weight * consistency
    backward(total)
    y_s, y_t = (pseudo_labels.to_labels(pseudo_labels.from_logits(each[len(x_l):])) for each in (logits, taught.logits))
    certain = total.new_ones(()) if taught.certain is None else taught.certain.float().mean()
    return {"loss": total.detach(), "loss_supervised": supervised.detach(), "loss_consistency": consistency.detach(),
            "certain": certain, "y_s": y_s, "y_t": y_t}


def certain_where(passes: Callable[[], Tensor], num_passes: int, threshold: float, exclusive: bool) -> Tensor:
    """UA-MT Eq. 2: u < H, with u the entropy of the mean of T stochastic predictions.

    Args:
        passes: draws one prediction, [N, C, …] probabilities.
        threshold: H.

    Returns:
        [N, 1, …] bool, or [N, C, …] of regions.
    """
    mean = torch.stack([passes() for _ in range(num_passes)]).mean(0)
    return entropy(mean, exclusive) < threshold


# ----------------------------------------------------------------------------------------------------------------------
# The trainers


class MeanTeacherTrainer(SemiSupervisedTrainer):
    """Mean teacher: consistency with an exponential moving average of the student's weights.

    The trained model is the student; the teacher lies beside it under one extra key of the checkpoint.
    """

    CONSISTENCY_WEIGHT = 0.1        # of the mean teacher that Yu et al. compare with
    RAMP_UP = 40_000 / 150_000      # steps of Tarvainen and Valpola's experiments

    # -- the teacher -------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.teacher = AveragedNetwork(self.network, self.settings.ema_decay)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.teacher.num_updates == 0:
            self.teacher.start_from(self.network)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "mean_teacher": self.teacher.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.teacher.load_state_dict(state["mean_teacher"])

    def teach(self, x: Tensor) -> Taught:
        """What the teacher says of x under noise η′; the student's η is nnU-Net's augmentation, which both see."""
        return Taught(self.teacher(with_input_noise(x, self.settings.input_noise)))

    # -- the step ----------------------------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> dict:
        x_l, y_l, unlabelled = self.to_device(batch)
        self.zero_gradients()
        results = mean_teacher_step(
            self.network, x_l, y_l, unlabelled.image, teach=self.teach, loss=self.loss,
            pseudo_labels=self.pseudo_labels, backward=self.backward, autocast=self.autocast,
            consistency_weight=self.consistency_weight())
        self.update_networks()
        self.teacher.update(self.network)
        self._last_sample = PreviewSample.of_first(
            unlabelled.image, {"teacher": results["y_t"], "student": results["y_s"]}, {})
        return self.scalars(results)

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**super().scalars(results), **self.to_numpy({
            "foreground_teacher": foreground_fraction(results["y_t"]),
            "foreground_student": foreground_fraction(results["y_s"]),
            "agreement": agreement(results["y_t"], results["y_s"]), "certain": results["certain"]})}


class UAMTTrainer(MeanTeacherTrainer):
    """UA-MT: mean teacher, but only where the teacher's answer varies little under noise and dropout."""

    RAMP_UP = 1.0       # λ(t) = 0.1 exp(−5 (1 − t / t_max)²), t_max the end of the training

    def initialize(self) -> None:
        super().initialize()
        check_is_unet(self.teacher.network)

    def threshold(self) -> float:
        """H: from 3/4 of the highest entropy to all of it, along the same ramp as λ."""
        manager = self.label_manager
        progress = sigmoid_ramp_up(self.current_epoch, self.num_epochs)
        return (0.75 + 0.25 * progress) * highest_entropy(manager.num_segmentation_heads, not manager.has_regions)

    def teach(self, x: Tensor) -> Taught:
        def once() -> Tensor:
            return self.pseudo_labels.probabilities(super(UAMTTrainer, self).teach(x).logits)

        with feature_dropout(self.teacher.network, self.settings.teacher_dropout):
            certain = certain_where(once, self.settings.uncertainty_passes, self.threshold(),
                                    exclusive=not self.label_manager.has_regions)
        return Taught(super().teach(x).logits, certain)
