"""Self-training, without (STTrainer) and with (SASTTrainer) synthetic images.

Lyu et al., Pseudo-Label Guided Image Synthesis for Semi-Supervised COVID-19 Pneumonia Infection Segmentation (SA-ST),
III.D; self-training: Zoph et al., Rethinking Pre-training and Self-training, NeurIPS 2020 (their reference 23).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor, nn

from nnunet_synth.atomic import write_json
from nnunet_synth.data.loaders import stop
from nnunet_synth.data.pseudo_labels import make_pseudo_labels, pseudo_labels_folder
from nnunet_synth.errors import UserError
from nnunet_synth.losses.segmentation import PseudoLabels, agreement, foreground_fraction
from nnunet_synth.trainers.loss_terms import (
    Loss,
    Synthesize,
    finest,
    loss_on_usable,
    no_gradient_sync,
    split_outputs,
    with_total,
)
from nnunet_synth.trainers.preview import PreviewSample
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer
from nnunet_synth.trainers.synthesis import DrawsSynthetic
from nnunet_synth.trainers.teacher import find_teacher, load_teacher

# ----------------------------------------------------------------------------------------------------------------------
# The step


def self_training_step(student: nn.Module, x_l: Tensor, y_l: Tensor | list[Tensor], x_u: Tensor, y_p: Tensor, *,
                       loss: Loss, pseudo_labels: PseudoLabels, backward: Callable[[Tensor], None],
                       pseudo_weight: float, synthetic_weight: float = 0.0, synthesize: Synthesize | None = None,
                       autocast: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Any]:
    """Accumulate the gradient of Eq. 18, L_s + μ (L_pseudo + L_synthetic), in the student.

    The terms on real images are backpropagated and freed before the images of the last term are drawn.

    Args:
        student: S; may be wrapped in DistributedDataParallel.
        x_l, y_l: labelled images and their targets.
        x_u, y_p: unlabelled images and the teacher's labels of them, [B, …] int64, augmented alike.
        loss: L_Seg (Eq. 6): nnU-Net's compound loss, with deep supervision.
        backward: scales, if need be, and backpropagates.
        pseudo_weight, synthetic_weight: μ on either term.
        synthesize: y_p → x̂; None = no synthetic term.

    Returns:
        Detached scalars "loss", "loss_supervised", "loss_pseudo", "loss_synthetic"; the student's own labels of x_u,
        "y_s" [B, …] int64; and, with synthesis, the "synthetic" result.
    """
    with no_gradient_sync([student]) if synthesize is not None else nullcontext():
        with autocast():
            on_l, on_u = split_outputs(student(torch.cat([x_l, x_u])), len(x_l))
            supervised = loss(on_l, y_l)                                                       # Eq. 15
            target = pseudo_labels.from_labels(y_p)
            pseudo = loss(on_u, pseudo_labels.for_outputs(target, on_u))                       # Eq. 16
        backward(supervised + pseudo_weight * pseudo)
    results: dict[str, Any] = {"y_s": pseudo_labels.to_labels(pseudo_labels.from_logits(finest(on_u)))}
    terms = {"loss_supervised": supervised.detach(), "loss_pseudo": pseudo.detach(),
             "loss_synthetic": torch.zeros_like(supervised.detach())}
    del on_l, on_u, supervised, pseudo

    if synthesize is not None:
        drawn = synthesize(y_p)
        with autocast():
            synthetic = loss_on_usable(student, drawn.image, pseudo_labels.from_labels(drawn.label), drawn.ok, loss,
                                       pseudo_labels)                                          # Eq. 17
        backward(synthetic_weight * synthetic)
        terms["loss_synthetic"] = synthetic.detach()
        results["synthetic"] = drawn
    return {**with_total(terms, pseudo_weight, synthetic_weight), **results}


class RestartingPolyLR(PolyLRScheduler):
    """nnU-Net's schedule, begun again by each student."""

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step if current_step is None else current_step % self.max_steps)


# ----------------------------------------------------------------------------------------------------------------------
# The trainers


class STTrainer(SemiSupervisedTrainer):
    """Self-training: a student learns from the labels that a finished teacher gave the unlabelled stream.

    With `num_rounds` > 1 the student of each round becomes the teacher of the next, where a fresh student starts;
    `num_epochs` is the length of a round. Students of earlier rounds stay as checkpoint_round_1.pth, ….
    """

    round = 0       # of the present student, from 0 on
    _teacher_key: str | None = None
    _teacher_to_restore: str | None = None

    # -- rounds ------------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.num_epochs = self.epochs_per_round * self.settings.num_rounds

    def optimizer_for(self, network: nn.Module) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        optimizer, _ = super().optimizer_for(network)
        return optimizer, RestartingPolyLR(optimizer, self.initial_lr, self.epochs_per_round)

    def on_epoch_start(self) -> None:
        # Here, not at the end of an epoch: a run that was stopped between two rounds comes by, too.
        if self.current_epoch // self.epochs_per_round > self.round:
            self.start_round()
        super().on_epoch_start()

    def start_round(self) -> None:
        """The student becomes the teacher, and a fresh student starts."""
        for name in ("checkpoint_latest.pth", self._student_file(self.round)):
            self.current_epoch -= 1     # as nnU-Net's on_train_end: the epoch that was counted has not begun
            self.save_checkpoint(str(Path(self.output_folder) / name))
            self.current_epoch += 1
        if self.is_ddp:
            dist.barrier()
        self.round += 1
        self.print_to_log_file(f"Round {self.round + 1} of {self.settings.num_rounds}: the student becomes the teacher")
        for loader in (self.dataloader_train, self.dataloader_val):
            stop(loader)
        self.label_unlabelled()
        self.network, self.optimizer, self.lr_scheduler = self.build_network()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self._best_ema = None
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    @staticmethod
    def _student_file(number: int) -> str:
        return f"checkpoint_round_{number + 1}.pth"

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        if self.current_epoch % self.epochs_per_round == 0:
            # nnU-Net picks the best checkpoint by a moving average, which must not begin with another student's values.
            self.logger.get_value("ema_fg_dice", step=None)[-1] = self.logger.get_value("mean_fg_dice", step=-1)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "round": self.round, "teacher": self._teacher_key}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.round, self._teacher_to_restore = state["round"], state["teacher"]

    # -- the teacher -------------------------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        super().prepare_training()
        if self.disable_checkpointing and self.settings.num_rounds > 1:
            raise UserError("num_rounds above 1 needs checkpoints, the next round's teacher is one: train without "
                            "--disable_checkpointing")
        self.label_unlabelled()

    def label_unlabelled(self) -> None:
        """Let the teacher of this round label the unlabelled stream, each rank a part; what is there stays."""
        teacher = load_teacher(self._teacher_file(), self.experiment, self.pseudo_labels, self.device,
                               self.lowest_intensity)
        for warning in teacher.warnings:
            self.print_to_log_file(f"WARNING: {warning}")
        if self._teacher_to_restore not in (None, teacher.key):
            raise UserError(f"the run was made with the pseudo-labels {self._teacher_to_restore} of another teacher or "
                            f"threshold than {teacher.model.path} ({teacher.key}): restore them, or start again "
                            "without --c")
        self._teacher_to_restore = None
        if teacher.lowest is not None:
            self.check_all_have_layouts()
        self._teacher_key = teacher.key
        folder = self.pseudo_labels_folder()
        self.print_to_log_file(f"Pseudo-labels of {teacher.model.path}: {folder}")
        if self.local_rank == 0:
            write_json({"teacher": str(teacher.model.path), **teacher.facts}, folder.with_suffix(".json"))
        cases = self.unlabelled_cases(with_pseudo_labels=False)
        world_size = dist.get_world_size() if self.is_ddp else 1
        make_pseudo_labels(cases, cases.identifiers[self.local_rank::world_size], folder,
                           self.configuration_manager.patch_size, teacher.label, sees_layout=teacher.lowest is not None)
        if self.is_ddp:
            dist.barrier()

    def _teacher_file(self) -> Path:
        if self.round > 0:
            return Path(self.output_folder) / self._student_file(self.round - 1)
        checkpoint = find_teacher(self.experiment, self.settings.teacher)
        if checkpoint.parent.resolve() == Path(self.output_folder).resolve():
            raise UserError(f"teacher {checkpoint} would be overwritten by its student: train under a configuration of "
                            "another name (nnunet_synth configure), or set num_rounds")
        return checkpoint

    def pseudo_labels_folder(self) -> Path | None:
        return pseudo_labels_folder(self.experiment, self._teacher_key)

    # -- the step ----------------------------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> dict:
        x_l, y_l, unlabelled = self.to_device(batch)
        y_p = self.stored_pseudo_labels(batch, unlabelled)
        self.zero_gradients()
        results = self_training_step(
            self.network, x_l, y_l, unlabelled.image, y_p, loss=self.loss, pseudo_labels=self.pseudo_labels,
            backward=self.backward, autocast=self.autocast,
            pseudo_weight=self.settings.pseudo_weight * self.ramp(),
            synthetic_weight=self.settings.synthetic_weight * self.ramp(), synthesize=self.synthesizer_for(unlabelled))
        self.update_networks()
        drawn = {"synth": results["synthetic"].image} if "synthetic" in results else {}
        self._last_sample = PreviewSample.of_first(unlabelled.image, {"teacher": y_p, "student": results["y_s"]}, drawn)
        return self.scalars({**results, "y_p": y_p})

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**super().scalars(results), **self.to_numpy({
            "foreground_teacher": foreground_fraction(results["y_p"]),
            "foreground_student": foreground_fraction(results["y_s"]),
            "agreement": agreement(results["y_p"], results["y_s"]), "round": torch.tensor(self.round)})}


class SASTTrainer(DrawsSynthetic, STTrainer):
    """Synthesis-assisted self-training: the student also learns from synthetic images, drawn on the fly to fit the
    teacher's labels."""
