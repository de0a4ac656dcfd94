"""Progressive pseudo-labelling: a few unlabelled cases at a time are labelled by the network and join the training set.

Fan et al., Inf-Net: Automatic COVID-19 Lung Infection Segmentation from CT Images, IEEE Trans. Med. Imaging 39:2626,
2020: Semi-Inf-Net, Algorithm 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nnunet_synth.data.loaders import UnlabelledCases, stop
from nnunet_synth.data.pseudo_labels import make_pseudo_labels
from nnunet_synth.data.trained_model import TrainedModel
from nnunet_synth.errors import UserError
from nnunet_synth.trainers.configured import unwrap
from nnunet_synth.trainers.preview import PreviewSample
from nnunet_synth.trainers.self_training import self_training_step
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer
from nnunet_synth.trainers.teacher import Teacher


def num_due(epoch: int, num_epochs: int, first_epoch: int, num_cases: int, group_size: int) -> int:
    """How many cases are labelled when an epoch starts: whole groups, spread evenly over the epochs from `first_epoch`
    on, all of them in the last one."""
    if epoch < first_epoch:
        return 0
    num_groups = math.ceil(num_cases / group_size)
    groups = math.ceil((epoch - first_epoch + 1) * num_groups / (num_epochs - first_epoch))
    return min(groups * group_size, num_cases)


class SemiInfNetTrainer(SemiSupervisedTrainer):
    """Semi-Inf-Net's semi-supervised learning, with nnU-Net's network.

    After a while on the labels alone, K unlabelled cases at a time, chosen at random, get pseudo-labels from the
    network as it is then, and keep them. They lie in the results folder.
    """

    _order: list[str] | None = None         # in which the unlabelled cases are taken
    _num_labelled = 0                       # how many of them are by now

    # -- whose turn it is --------------------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        super().prepare_training()
        stream = self.unlabelled_cases(with_pseudo_labels=False).identifiers
        if self._order is None:
            shuffled = [np.random.default_rng(self.settings.seed).permutation(sorted(stream)).tolist()]
            if self.is_ddp:
                dist.broadcast_object_list(shuffled, src=0)     # without a seed each rank has an order of its own
            self._order = shuffled[0]
        elif set(self._order) != set(stream):
            raise UserError("the unlabelled cases are not those that the run was begun with: restore them, or start "
                            "again without --c")
        self._check_labels_are_there()

    def _check_labels_are_there(self) -> None:
        gone = [case_id for case_id in self._order[:self._num_labelled]
                if not (self._labels_folder / f"{case_id}.b2nd").exists()]
        if gone:
            raise UserError(f"{len(gone)} pseudo-label(s) of the run are gone from {self._labels_folder} (e.g. "
                            f"{gone[0]}): restore them, or start again without --c")

    def on_epoch_start(self) -> None:
        due = num_due(self.current_epoch, self.num_epochs, math.ceil(self.settings.labels_only_share * self.num_epochs),
                      len(self._order), self.settings.cases_at_a_time)
        if due > self._num_labelled:
            self.label_next(due)
        super().on_epoch_start()

    def label_next(self, num_labelled: int) -> None:
        """Label the next cases with the network as it is now, each rank a part, and train on them from now on."""
        chosen = self._order[self._num_labelled:num_labelled]
        mine = chosen[self.local_rank::dist.get_world_size() if self.is_ddp else 1]
        self.print_to_log_file(f"{num_labelled} of {len(self._order)} unlabelled cases have pseudo-labels from now on")
        for loader in (self.dataloader_train, self.dataloader_val):
            stop(loader)
        for case_id in mine:        # of another run, or of this one before it was stopped
            (self._labels_folder / f"{case_id}.b2nd").unlink(missing_ok=True)
        teacher = self.present_teacher()
        make_pseudo_labels(self.unlabelled_cases(with_pseudo_labels=False), mine, self._labels_folder,
                           self.configuration_manager.patch_size, teacher.label, sees_layout=teacher.lowest is not None)
        if self.is_ddp:
            dist.barrier()
        self._num_labelled = num_labelled
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    def present_teacher(self) -> Teacher:
        """The network as it is now, predicting as nnU-Net does."""
        model = TrainedModel(
            path=Path(self.output_folder), weights=unwrap(self.network).state_dict(), plans=self.plans_manager.plans,
            configuration=self.configuration_name, dataset_json=self.dataset_json, fold=self.fold,
            trainer_name="nnUNetTrainer", mirror_axes=self.inference_allowed_mirroring_axes, started=None, ours={})
        return Teacher(model, self.experiment, self.pseudo_labels, self.device,
                       self.lowest_intensity() if self.settings.mask_outside_layout else None, [])

    @property
    def _labels_folder(self) -> Path:
        return Path(self.output_folder) / "pseudo_labels"

    def pseudo_labels_folder(self) -> Path | None:
        return self._labels_folder if self._num_labelled > 0 else None

    def unlabelled_cases(self, with_pseudo_labels: bool = True) -> UnlabelledCases:
        cases = super().unlabelled_cases(with_pseudo_labels)
        if cases.pseudo_labels_folder is not None:
            cases.identifiers = self._order[:self._num_labelled]
        return cases

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "order": self._order, "num_labelled": self._num_labelled}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._order, self._num_labelled = state["order"], state["num_labelled"]

    # -- the step ----------------------------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> dict:
        self.zero_gradients()
        results = self.supervised_step(batch) if self._num_labelled == 0 else self.step_with_pseudo_labels(batch)
        self.update_networks()
        return self.scalars(results)

    def supervised_step(self, batch: dict) -> dict[str, Tensor]:
        x_l, y_l = self.labelled_to_device(batch)
        with self.autocast():
            loss = self.loss(self.network(x_l), y_l)
        self.backward(loss)
        return {"loss": loss, "loss_supervised": loss, "loss_pseudo": torch.zeros_like(loss)}

    def step_with_pseudo_labels(self, batch: dict) -> dict[str, Tensor]:
        x_l, y_l, unlabelled = self.to_device(batch)
        y_p = self.stored_pseudo_labels(batch, unlabelled)
        results = self_training_step(
            self.network, x_l, y_l, unlabelled.image, y_p, loss=self.loss, pseudo_labels=self.pseudo_labels,
            backward=self.backward, autocast=self.autocast, pseudo_weight=self.consistency_weight())
        self._last_sample = PreviewSample.of_first(
            unlabelled.image, {"pseudo-label": y_p, "network": results["y_s"]}, {})
        return {key: results[key] for key in ("loss", "loss_supervised", "loss_pseudo")}

    def scalars(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**super().scalars(results), "pseudo_labelled": np.array(self._num_labelled)}
