"""The base of all our trainers: nnU-Net's, with settings from the plans, seeds, exact resume and atomic checkpoints.

The trained model is a stock nnU-Net model: its checkpoint says `trainer_name: nnUNetTrainer`, so prediction, export
and ensembling work where nnunet_synth was never installed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_synth.config import TrainerConfig
from nnunet_synth.console import printable
from nnunet_synth.data.device_augmentation import DeviceAugmentation
from nnunet_synth.data.device_augmentation_spatial import Geometry
from nnunet_synth.data.experiment import Experiment, load_experiment
from nnunet_synth.data.intensities import intensity_range
from nnunet_synth.data.loaders import (
    AugmentedOnDevice,
    CasesWithLayout,
    MarkHoles,
    in_background,
    masked_dataset_class,
    split_channels,
    stop,
    with_layout_channels,
    without_benchmarks,
)
from nnunet_synth.data.preprocessed_cases import dataset_class
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.data.splits import check_split, find_split, load_splits
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.environment import check_environment
from nnunet_synth.errors import UserError
from nnunet_synth.mixed_precision import LossInFloat32, autocast, is_wanted_on_cpu
from nnunet_synth.trainers.checkpoint import (
    OUR_KEY,
    SCHEMA,
    capture_rng,
    plain,
    read_checkpoint,
    restore_rng,
    write_checkpoint,
)
from nnunet_synth.trainers.epoch_log import EpochLog
from nnunet_synth.trainers.one_training import only_training, refuse_second_training


class ConfiguredTrainer(nnUNetTrainer):
    """nnU-Net with hyper-parameters from the block "nnunet_synth" of the plans configuration (nnunet_synth configure).

    Subclasses say in `train_step` what is learned. Layouts travel with the labelled samples in three extra channels.
    """

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")) -> None:  # noqa: B008 - nnU-Net reads this signature
        # Refused before anything is written: nnU-Net's constructor makes the results folder.
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"this torch ({torch.__version__}) sees no CUDA device: train with -device cpu, or see "
                            "nnunet_synth doctor")
        check_environment()
        stock = PlansManager(plans).get_configuration(configuration)
        if stock.previous_stage_name is not None:
            raise UserError(f"{type(self).__name__} does not support cascades: the layout maps travel in the slot of "
                            "the previous stage's segmentation; train 2d or 3d_fullres")
        settings = TrainerConfig.from_plans_configuration(stock.configuration.get("nnunet_synth", {}))
        self.check_settings(settings)
        refuse_second_training(type(self), plans, configuration, fold)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = settings
        for name, value in settings.trainer_attributes().items():
            setattr(self, name, value)
        if settings.batch_size is not None:
            self.configuration_manager.configuration["batch_size"] = settings.batch_size
        self.epoch_log = EpochLog(Path(self.output_folder))
        self._rng_to_restore: dict[str, Any] | None = None
        self._lowest: list[float] | None = None
        self.augmentation_generator = torch.Generator()

    @classmethod
    def check_settings(cls, settings: TrainerConfig) -> None:
        """Raise UserError for settings that this trainer cannot follow."""

    def print_to_log_file(self, *args: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        # nnU-Net opens its log in whatever encoding the system has.
        super().print_to_log_file(*map(printable, args), also_print_to_console=also_print_to_console,
                                  add_timestamp=add_timestamp)

    # -- setting up --------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        if self.device.type == "cpu" and threads.isdecimal() and int(threads) > 0:      # OpenMP ignores anything else
            # nnUNetv2_train takes all cores whatever the user said; threads that wait for one another where other work
            # is going on take several times as long as one would.
            torch.set_num_threads(int(threads))
        if self.settings.seed is not None:
            seed = self.settings.seed + self.local_rank
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        if self.settings.epochs_over_unlabelled is not None:
            self.num_epochs = self.settings.epochs_over_unlabelled
        self.epochs_per_round = self.num_epochs     # length of the learning rate's schedule
        dataset_class(Path(self.preprocessed_dataset_folder))       # before nnU-Net trips over it
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        return self.optimizer_for(self.network)

    def optimizer_for(self, network: nn.Module) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """nnU-Net's optimizer and schedule, for any of the networks that this trainer trains."""
        optimizer = torch.optim.SGD(network.parameters(), self.initial_lr, weight_decay=self.weight_decay,
                                    momentum=self.settings.momentum, nesterov=True)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.epochs_per_round)

    def build_network(self) -> tuple[nn.Module, torch.optim.Optimizer, PolyLRScheduler]:
        """One more network with random weights, made and wrapped as nnU-Net makes its own, with what trains it."""
        network = self.build_network_architecture(
            self.plans_manager, self.configuration_manager, self.num_input_channels,
            self.label_manager.num_segmentation_heads, self.enable_deep_supervision).to(self.device)
        if self._do_i_compile():
            network = torch.compile(network)
        optimizer, schedule = self.optimizer_for(network)
        if self.is_ddp:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            network = DistributedDataParallel(network, device_ids=[self.local_rank])
        return network, optimizer, schedule

    def trained_networks(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """Every network that learns, with its optimizer."""
        return [(self.network, self.optimizer)]

    @cached_property
    def experiment(self) -> Experiment:
        return load_experiment(self.plans_manager.dataset_name, self.configuration_name, self.fold,
                               self.plans_manager.plans_name)

    def run_training(self) -> None:
        with only_training(self):
            super().run_training()

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self.prepare_cases()
        self.prepare_training()
        super().on_train_start()
        if self.local_rank == 0:
            self.epoch_log.begin(self.current_epoch)
        if self._rng_to_restore is not None:
            # After the loaders drew their first batch: from here on every draw is that of the run that was stopped.
            restore_rng(self._rng_to_restore)
            self._rng_to_restore = None

    def prepare_cases(self) -> None:
        """See to it that everything the loaders read is there."""
        if self.settings.mask_outside_layout:
            self.preprocess()
            self.check_all_have_layouts()

    def preprocess(self) -> None:
        """Preprocess the unlabelled cases and layouts that are missing, once for all ranks."""
        if self.local_rank == 0:
            plan = preprocess_pool(self.experiment, num_processes=max(1, get_allowed_n_proc_DA()), waits=True)
            for warning in plan.warnings:
                self.print_to_log_file(f"WARNING: {warning}")
        if self.is_ddp:
            dist.barrier()

    def prepare_training(self) -> None:
        """Whatever else a subclass needs before the loaders start: a synthesizer, a teacher's pseudo-labels."""

    def case_ids(self) -> list[str]:
        """Every case that this training looks at."""
        return [*self.experiment.train_ids, *self.experiment.val_ids]

    def check_all_have_layouts(self) -> None:
        without = [case_id for case_id in self.case_ids()
                   if not (self.experiment.layouts_folder / f"{case_id}.b2nd").exists()]
        if without:
            raise UserError(f"mask_outside_layout needs the layout of every case; {len(without)} have none (e.g. "
                            f"{without[0]}): run nnunet_synth layouts {self.experiment.dataset_name[7:10]} "
                            "--method threshold, then nnunet_synth preprocess")

    def do_split(self) -> tuple[list[str], list[str]]:
        if self.fold != "all" and os.path.isfile(f"{self.preprocessed_dataset_folder_base}/splits_final.json"):
            # Stock nnU-Net answers a fold beyond the list with a random split.
            check_split(find_split(load_splits(self.preprocessed_dataset_folder_base), self.fold))
        return super().do_split()

    # -- data --------------------------------------------------------------------------------------------------------

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> Any:
        return with_layout_channels(nnUNetTrainer.get_training_transforms(*args, **kwargs))

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> Any:
        return with_layout_channels(nnUNetTrainer.get_validation_transforms(*args, **kwargs))

    def get_dataloaders(self) -> tuple[Any, Any]:
        """As nnU-Net's, with whatever streams a subclass puts beside the labelled one in the same processes."""
        if self.dataset_class is None:
            self.dataset_class = dataset_class(Path(self.preprocessed_dataset_folder))
        rotation, dummy_2d, initial_patch_size, mirror_axes = \
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        scales = self._get_deep_supervision_scales()
        num_processes = get_allowed_n_proc_DA()
        labels = {
            "is_cascaded": False,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        patch_size = self.configuration_manager.patch_size

        def training_transforms(deep_supervision_scales: list | None, **labels: Any) -> Any:
            if self.augments_on_device:
                return ComposeTransforms([MarkHoles()])
            transforms = self.get_training_transforms(
                patch_size, rotation, deep_supervision_scales, mirror_axes, dummy_2d,
                use_mask_for_norm=self.configuration_manager.use_mask_for_norm, **labels)
            return transforms if num_processes else without_benchmarks(transforms)

        cases_tr, cases_val = (CasesWithLayout(dataset, self.experiment.layouts_folder)
                               for dataset in self.get_tr_and_val_datasets())
        oversampling = {"oversample_foreground_percent": self.oversample_foreground_percent,
                        "probabilistic_oversampling": self.probabilistic_oversampling}
        labelled = nnUNetDataLoader(cases_tr, self.batch_size, initial_patch_size, patch_size, self.label_manager,
                                    transforms=training_transforms(scales, **labels), **oversampling)
        training = self.with_other_streams(labelled, initial_patch_size, training_transforms)
        validation = nnUNetDataLoader(cases_val, self.batch_size, patch_size, patch_size, self.label_manager,
                                      transforms=self.get_validation_transforms(scales, **labels), **oversampling)

        num_val = max(1, num_processes // 2) if num_processes else 0
        seeds = self._worker_seeds(num_processes + num_val)
        pin_memory = self.device.type == "cuda"
        loader_tr = in_background(training, num_processes, max(6, num_processes // 2), seeds[:num_processes],
                                  pin_memory)
        loader_val = in_background(validation, num_val, max(3, num_processes // 4), seeds[num_processes:], pin_memory)
        next(loader_tr), next(loader_val)       # fail here, not in the first step
        if self.augments_on_device:
            geometry = Geometry(tuple(patch_size), rotation, mirror_axes, dummy_2d)
            streams = self.device_augmentations(self.labelled_augmentation(geometry, scales))
            loader_tr = AugmentedOnDevice(loader_tr, streams, self.device, self.augmentation_generator)
        return loader_tr, loader_val

    @property
    def augments_on_device(self) -> bool:
        return self.settings.augmentation == "device"

    def labelled_augmentation(self, geometry: Geometry, scales: list | None) -> DeviceAugmentation:
        """What nnU-Net's training transforms do to the labelled stream, on the device."""
        regions, ignore_label = None, self.label_manager.ignore_label
        if self.label_manager.has_regions:
            regions = [*self.label_manager.foreground_regions, *([] if ignore_label is None else [ignore_label])]
        masked = [channel for channel, is_masked in enumerate(self.configuration_manager.use_mask_for_norm)
                  if is_masked]
        return DeviceAugmentation(geometry, tuple(masked), regions=regions, deep_supervision_scales=scales)

    def device_augmentations(self, labelled: DeviceAugmentation) -> dict[str, DeviceAugmentation]:
        """What is done on the device to each stream, by the ending of its keys in a batch."""
        return {"": labelled}

    def with_other_streams(self, labelled: nnUNetDataLoader, initial_patch_size: Any,
                           transforms: Callable[..., Any]) -> Any:
        """The loader of the training: the labelled one, or a composite of it and others.

        Args:
            initial_patch_size: of a patch before its spatial augmentation.
            transforms: (deep_supervision_scales | None) → the training transforms.
        """
        return labelled

    def _worker_seeds(self, num_workers: int) -> list[int]:
        """Different for each worker, rank and starting epoch, so that a resumed run does not see the same samples."""
        return [int(seed) for seed in self._seed_sequence().generate_state(num_workers)]

    def _seed_sequence(self, *purpose: int) -> np.random.SeedSequence:
        """Of this rank and epoch."""
        entropy = None if self.settings.seed is None else (self.settings.seed, self.local_rank, self.current_epoch)
        return np.random.SeedSequence(entropy, spawn_key=purpose)

    def mask_outside(self, image: Tensor, layout: Tensor) -> Tensor:
        """"We ignore the regions outside the lung" (SA-CPS IV.A.3): the lowest intensity where there is no layout."""
        if not self.settings.mask_outside_layout:
            return image
        lowest = torch.tensor(self.lowest_intensity()).to(image).view(1, -1, *(1,) * (image.ndim - 2))
        return torch.where(layout[:, None] > 0, image, lowest)

    def lowest_intensity(self) -> list[float]:
        """Of each channel, in the network's intensity space: what air is."""
        if self._lowest is None:
            slices = FoldSlices(self.experiment, self.experiment.train_ids)
            self._lowest = [low for low, _ in intensity_range(self.experiment, slices)]
        return self._lowest

    # -- one step ----------------------------------------------------------------------------------------------------

    def labelled_to_device(self, batch: dict) -> tuple[Tensor, Tensor | list[Tensor]]:
        """x_l and y_l, outside the layout masked if the settings say so."""
        target = batch["target"]
        y_l = [self.move(level) for level in target] if isinstance(target, list) else self.move(target)
        image, layout, _, _ = split_channels(self.move(batch["data"]))
        return self.mask_outside(image, layout).contiguous(), y_l

    def move(self, part: Tensor) -> Tensor:
        """To the device of the training."""
        return part.to(self.device, non_blocking=True)

    def zero_gradients(self) -> None:
        for _, optimizer in self.trained_networks():
            optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()

    def update_networks(self) -> None:
        """Clip and step each network by its own optimizer, with one gradient scaler for all."""
        for network, optimizer in self.trained_networks():
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            if self.grad_scaler is not None:
                self.grad_scaler.step(optimizer)
            else:
                optimizer.step()
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    def scalars(self, results: dict[str, Any]) -> dict[str, np.ndarray]:
        """What of a step's results is averaged over the epoch and logged: the loss and its terms, "loss…"."""
        return self.to_numpy({key: value for key, value in results.items() if key.startswith("loss")})

    @staticmethod
    def to_numpy(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {key: value.detach().float().cpu().numpy() for key, value in values.items()}

    # -- one epoch ---------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        # A function of seed, rank and epoch: a run that is resumed here draws the same.
        self.augmentation_generator.manual_seed(int(self._seed_sequence(1).generate_state(1, np.uint64)[0]))

    def autocast(self) -> AbstractContextManager:
        return autocast(self.device)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        means = {key: float(np.mean(values)) for key, values in collate_outputs(train_outputs).items()}
        if self.local_rank == 0:
            self.epoch_log.write(self.current_epoch, means)
            self.print_to_log_file(", ".join(f"{key} {value:.4g}" for key, value in means.items()))
            for logger in self.logger.loggers:
                for key, value in means.items():
                    logger.log(f"nnunet_synth/{key}", value, self.current_epoch)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        return LossInFloat32(loss) if self.device.type == "cpu" and is_wanted_on_cpu() else loss

    def validation_step(self, batch: dict) -> dict:
        image, layout, _, _ = split_channels(batch["data"])
        return super().validation_step({**batch, "data": self.mask_outside(image, layout)})

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with only_training(self):
            self._validate(save_probabilities)

    def _validate(self, save_probabilities: bool) -> None:
        if not self.settings.mask_outside_layout:
            return super().perform_actual_validation(save_probabilities)
        self.print_to_log_file("mask_outside_layout: validation cases are masked as in training. To predict new cases, "
                               "mask them first: nnunet_synth layouts --images IN --masked OUT --method threshold")
        with self._masked_cases():
            return super().perform_actual_validation(save_probabilities)

    @contextmanager
    def _masked_cases(self) -> Iterator[None]:
        stock = self.dataset_class
        self.dataset_class = masked_dataset_class(stock, self.experiment.layouts_folder,
                                                  self.lowest_intensity())
        try:
            yield
        finally:
            self.dataset_class = stock

    def on_train_end(self) -> None:
        super().on_train_end()
        stop(self.dataloader_train)     # nnU-Net does not look inside ours

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """What a subclass adds to the checkpoint: tensors and plain containers only."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `extra_state`, after `initialize`."""

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        write_checkpoint({
            "network_weights": unwrap(self.network).state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": plain(self.logger.get_checkpoint()),
            "_best_ema": plain(self._best_ema),
            "current_epoch": self.current_epoch + 1,
            "init_args": {**self.my_init_kwargs, "device": str(self.device)},
            # The architecture is nnU-Net's own: whoever loads this needs no plug-in.
            "trainer_name": nnUNetTrainer.__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            OUR_KEY: {"schema": SCHEMA, "trainer": type(self).__name__, "settings": self.settings.to_json(),
                      "split_sha256": self.experiment.split_sha256, "rng": capture_rng(), **self.extra_state()},
        }, filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        if not self.was_initialized:
            self.initialize()
        checkpoint = read_checkpoint(filename_or_checkpoint, self.device)
        ours = checkpoint[OUR_KEY]
        if ours["trainer"] != type(self).__name__:
            raise UserError(f"{filename_or_checkpoint} was written by {ours['trainer']}: resume with -tr "
                            f"{ours['trainer']}")
        if ours["split_sha256"] != self.experiment.split_sha256:
            raise UserError(f"{filename_or_checkpoint} was trained on another split than fold {self.fold} of "
                            "splits_final.json is now: restore that file, or start again without --c")
        unwrap(self.network).load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        self._rng_to_restore = ours["rng"]
        self.load_extra_state(ours)


def unwrap(network: nn.Module) -> nn.Module:
    """The bare network inside DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network
