"""The base of the semi-supervised trainers: a second, unlabelled stream of samples beside the labelled one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunet_synth.data.device_augmentation import DeviceAugmentation
from nnunet_synth.data.loaders import TwoStreamLoader, UnlabelledCases, UnlabelledLoader, split_channels
from nnunet_synth.data.preprocessed_cases import dataset_class
from nnunet_synth.data.unlabelled import PoolPlan
from nnunet_synth.errors import UserError
from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers.configured import ConfiguredTrainer
from nnunet_synth.trainers.epoch_log import PREVIEWS
from nnunet_synth.trainers.loss_terms import Synthesize
from nnunet_synth.trainers.preview import PreviewSample, write_preview
from nnunet_synth.trainers.synthesis import UnlabelledBatch


class SemiSupervisedTrainer(ConfiguredTrainer):
    """nnU-Net with a second, unlabelled stream of samples; subclasses say in `train_step` what it is for."""

    CONSISTENCY_WEIGHT = 1.0        # of the paper's consistency term
    RAMP_UP = 0.0                   # share of the training over which the paper lets the unlabelled weights grow

    _last_sample: PreviewSample | None = None

    # -- setting up --------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.pseudo_labels = PseudoLabels(
            threshold=self.settings.confidence_threshold,
            regions=self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            region_order=self.label_manager.regions_class_order if self.label_manager.has_regions else None,
            has_ignore_channel=self.label_manager.has_ignore_label)
        if self.settings.confidence_threshold != 0.5 and not self.label_manager.has_regions \
                and self.label_manager.num_segmentation_heads != 2:
            raise UserError("confidence_threshold is defined for one foreground class or for regions; this dataset has "
                            f"{self.label_manager.num_segmentation_heads - 1} exclusive classes: leave it at 0.5 "
                            "(= argmax)")

    def prepare_cases(self) -> None:
        self.prepare_unlabelled()
        if self.settings.epochs_over_unlabelled is not None:
            slices_per_step = self.unlabelled_batch_size * (dist.get_world_size() if self.is_ddp else 1)
            num_slices = self.unlabelled_cases(with_pseudo_labels=False).num_slices()
            self.num_iterations_per_epoch = math.ceil(num_slices / slices_per_step)

    def prepare_unlabelled(self) -> None:
        """Find the unlabelled stream; preprocess what of it is missing. Raises UserError where there is none."""
        experiment = self.experiment
        if self.local_rank == 0 and experiment.pool_ids and not PoolPlan(experiment).is_complete:
            self.print_to_log_file("The unlabelled pool is missing or stale: preprocessing it now "
                                   f"(nnunet_synth preprocess {experiment.dataset_name[7:10]} "
                                   f"{experiment.configuration})")
        self.preprocess()
        num_unlabelled = len(experiment.pool_ids) + len(experiment.unlabelled_ids)
        if num_unlabelled == 0:
            raise UserError(f"{experiment.dataset_name} has no unlabelled scans: put them into "
                            f"{experiment.raw_folder / 'imagesUl'}, or hide labels with nnunet_synth split "
                            f"{experiment.dataset_name[7:10]} --of-fold {self.fold} --labelled 10%")
        if self.settings.mask_outside_layout:
            self.check_all_have_layouts()
        self.print_to_log_file(f"{len(experiment.train_ids)} labelled and {num_unlabelled} unlabelled cases "
                               f"({len(experiment.pool_ids)} of imagesUl)")

    def case_ids(self) -> list[str]:
        return [*super().case_ids(), *self.experiment.unlabelled_ids, *self.experiment.pool_ids]

    # -- data --------------------------------------------------------------------------------------------------------

    @property
    def unlabelled_batch_size(self) -> int:
        """Per process; equal to the labelled one unless set (B of the paper)."""
        if self.settings.unlabelled_batch_size is None:
            return self.batch_size
        world_size = dist.get_world_size() if self.is_ddp else 1
        if self.settings.unlabelled_batch_size % world_size:
            raise UserError(f"unlabelled_batch_size {self.settings.unlabelled_batch_size} must be a multiple of the "
                            f"number of GPUs ({world_size})")
        return self.settings.unlabelled_batch_size // world_size

    def pseudo_labels_folder(self) -> Path | None:
        """Where the labels of the unlabelled stream lie that a teacher made; None = it has no labels."""
        return None

    def unlabelled_cases(self, with_pseudo_labels: bool = True) -> UnlabelledCases:
        experiment = self.experiment
        folders = [(experiment.pool_folder, experiment.pool_ids), (experiment.data_folder, experiment.unlabelled_ids)]
        sources = [dataset_class(folder)(str(folder), ids) for folder, ids in folders if ids]
        return UnlabelledCases(sources, experiment.layouts_folder, self.settings.pool_slices == "layout",
                               self.pseudo_labels_folder() if with_pseudo_labels else None)

    def with_other_streams(self, labelled: nnUNetDataLoader, initial_patch_size: Any,
                           transforms: Callable[..., Any]) -> TwoStreamLoader:
        unlabelled = UnlabelledLoader(self.unlabelled_cases(), self.unlabelled_batch_size, initial_patch_size,
                                      self.configuration_manager.patch_size, self.label_manager,
                                      transforms=transforms(None))
        return TwoStreamLoader(labelled, unlabelled, augmented_later=self.augments_on_device)

    def device_augmentations(self, labelled: DeviceAugmentation) -> dict[str, DeviceAugmentation]:
        has_labels = self.pseudo_labels_folder() is not None
        return {**super().device_augmentations(labelled), "_u": replace(labelled, has_target=has_labels, regions=None,
                                                                        deep_supervision_scales=None)}

    # -- one step ----------------------------------------------------------------------------------------------------

    def to_device(self, batch: dict) -> tuple[Tensor, Tensor | list[Tensor], UnlabelledBatch]:
        """x_l, y_l and the unlabelled batch, outside the layout masked if the settings say so."""
        image, layout, cluster, valid = split_channels(self.move(batch["data_u"]))
        return (*self.labelled_to_device(batch),
                UnlabelledBatch(self.mask_outside(image, layout).contiguous(), layout, cluster, valid))

    def stored_pseudo_labels(self, batch: dict, unlabelled: UnlabelledBatch) -> Tensor:
        """[B, …] int64 labels of the unlabelled batch that lie on disk (`pseudo_labels_folder`)."""
        labels = self.move(batch["target_u"])[:, 0].long()
        if not self.settings.mask_outside_layout:
            return labels
        return torch.where(unlabelled.layout > 0, labels, 0)        # nothing to see there

    def synthesizer_for(self, unlabelled: UnlabelledBatch) -> Synthesize | None:
        """Draws synthetic images for labels of this batch; None = this trainer has none (see `DrawsSynthetic`)."""
        return None

    # -- one epoch ---------------------------------------------------------------------------------------------------

    def ramp(self) -> float:
        """Sigmoid ramp-up of the unlabelled weights, over `ramp_up_epochs` or as long as in the paper."""
        chosen = self.settings.ramp_up_epochs
        num_epochs = self.RAMP_UP * self.epochs_per_round if chosen is None else chosen
        return sigmoid_ramp_up(self.current_epoch % self.epochs_per_round, num_epochs)

    def consistency_weight(self) -> float:
        """λ of the consistency term at this time."""
        chosen = self.settings.consistency_weight
        return (self.CONSISTENCY_WEIGHT if chosen is None else chosen) * self.ramp()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        every = self.settings.preview_every
        if self.local_rank == 0 and self._last_sample is not None and every and (self.current_epoch + 1) % every == 0:
            write_preview(self._last_sample,
                          Path(self.output_folder) / PREVIEWS / f"epoch_{self.current_epoch + 1:04d}.png")
        self._last_sample = None


def sigmoid_ramp_up(epoch: int, num_epochs: float) -> float:
    """exp(−5 (1 − t)²) with t = epoch / num_epochs in [0, 1] (Laine and Aila 2017); 1 without a ramp."""
    if num_epochs == 0:
        return 1.0
    progress = min(max(epoch / num_epochs, 0.0), 1.0)
    return math.exp(-5 * (1 - progress) ** 2)
