"""`augmentation: device` inside the trainers: the same kind of batches, exact resume, nothing augmented twice."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_synth.data.loaders import AugmentedOnDevice, MarkHoles, UnlabelledCases
from nnunet_synth.data.pseudo_labels import make_pseudo_labels, pseudo_labels_folder
from nnunet_synth.trainers import (
    CPSTrainer,
    SACPSTrainer,
    SemiInfNetTrainer,
    STTrainer,
    SupervisedTrainer,
    UniMatchTrainer,
)
from nnunet_synth.trainers.configured import ConfiguredTrainer
from tests.trainers.runs import make_trainer, resumed, save_untrained_sean, train_stock, train_until_killed
from tests.trainers.test_every_trainer import state_of
from tests.trainers.test_settings import REGIONS, relabel

DEVICE = {"augmentation": "device", "seed": 7}


def with_loaders(trainer: ConfiguredTrainer) -> ConfiguredTrainer:
    trainer.initialize()
    trainer.prepare_cases()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


@pytest.mark.parametrize(("trainer_class", "settings"), [
    (SupervisedTrainer, {}), (CPSTrainer, {}), (SACPSTrainer, {}), (UniMatchTrainer, {}),
    # these make their loaders anew: for each round, and when pseudo-labels join the stream
    (STTrainer, {"num_epochs": 1, "num_rounds": 3}), (SemiInfNetTrainer, {"labels_only_share": 0.3})])
def test_resume_is_bit_identical(planned_dataset: Path, trainer_class: type[ConfiguredTrainer],
                                 settings: dict[str, object]) -> None:
    """3 epochs at once = 1 epoch, killed in the second, resumed."""
    if trainer_class is SACPSTrainer:
        save_untrained_sean()
    if trainer_class is STTrainer:
        train_stock(planned_dataset)
    settings = {"num_epochs": 3, "save_every": 1, **DEVICE, **settings}
    whole = make_trainer(trainer_class, planned_dataset, **settings)
    whole.run_training()
    assert isinstance(whole.dataloader_train, AugmentedOnDevice)
    expected, losses = state_of(whole), [entry["loss"] for entry in whole.epoch_log.read()]
    assert len(losses) == 3 and all(map(math.isfinite, losses))

    train_until_killed(make_trainer(trainer_class, planned_dataset, **settings), num_epochs=1)
    torch.manual_seed(99)       # whatever happened in between
    continued = resumed(trainer_class, planned_dataset, **settings)
    continued.run_training()
    got = state_of(continued)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert losses == [entry["loss"] for entry in continued.epoch_log.read()]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("has_regions", [False, True])
def test_batches_are_of_the_same_kind(planned_dataset: Path, configuration: str, has_regions: bool) -> None:
    """Keys, shapes, types and values of labels, with the workers' augmentation and with the device's."""
    if has_regions:
        relabel(planned_dataset, {**REGIONS[0], "ignore": 3}, REGIONS[1], 3)
    on_cpu, on_device = (
        with_loaders(make_trainer(CPSTrainer, planned_dataset, configuration, augmentation=augmentation, seed=0))
        for augmentation in ("cpu", "device"))
    expected, batch = next(on_cpu.dataloader_train), next(on_device.dataloader_train)
    assert set(batch) == set(expected) and "target_u" not in batch
    for name in ("data", "data_u"):
        assert batch[name].shape == expected[name].shape and batch[name].dtype == expected[name].dtype
    assert len(batch["target"]) == len(expected["target"]) > 1
    for mine, theirs in zip(batch["target"], expected["target"], strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        assert mine.shape[1] == (3 if has_regions else 1)


def test_workers_only_crop(planned_dataset: Path) -> None:
    """nnU-Net's enlarged patch, and no transform but the one that marks holes."""
    trainer = with_loaders(make_trainer(CPSTrainer, planned_dataset, batch_size=4, **DEVICE))
    raw = trainer.dataloader_train.loader.data_loader
    *_, enlarged, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    for stream in (raw.labelled, raw.unlabelled):
        assert [type(transform) for transform in stream.transforms.transforms] == [MarkHoles]
        batch = next(stream)
        assert batch["data"].shape == (4, 1, *enlarged) and batch["target"].shape == (4, 2, *enlarged)
    assert min(enlarged) > max(trainer.configuration_manager.patch_size)


def test_validation_is_not_augmented(planned_dataset: Path) -> None:
    batches = []
    for augmentation in ("cpu", "device"):
        trainer = with_loaders(make_trainer(CPSTrainer, planned_dataset, augmentation=augmentation, seed=0))
        assert not isinstance(trainer.dataloader_val, AugmentedOnDevice)
        np.random.seed(5)
        batches.append(next(trainer.dataloader_val))
    on_cpu, on_device = batches
    assert on_cpu["keys"].tolist() == on_device["keys"].tolist()
    assert torch.equal(on_cpu["data"], on_device["data"])
    assert all(map(torch.equal, on_cpu["target"], on_device["target"]))


def test_seed_rank_and_epoch_decide(planned_dataset: Path) -> None:
    def first_batch(seed: int | None, rank: int = 0, epoch: int = 0) -> torch.Tensor:
        trainer = with_loaders(make_trainer(CPSTrainer, planned_dataset, augmentation="device", seed=seed))
        trainer.local_rank, trainer.current_epoch = rank, epoch
        trainer.on_train_epoch_start()
        np.random.seed(1)       # the same crops
        batch = next(trainer.dataloader_train)
        assert not torch.equal(batch["data"], batch["data_u"])
        return batch["data"]

    expected = first_batch(3)
    assert torch.equal(first_batch(3), expected)
    for other in (first_batch(4), first_batch(3, rank=1), first_batch(3, epoch=1), first_batch(None)):
        assert other.shape == expected.shape and not torch.equal(other, expected)
    assert not torch.equal(first_batch(None), first_batch(None))


class LayoutTrainer(CPSTrainer):
    """Its unlabelled stream carries the layout as pseudo-label."""

    def pseudo_labels_folder(self) -> Path:
        return pseudo_labels_folder(self.experiment, "layout")


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_pseudo_labels_are_augmented_with_the_image(planned_dataset: Path, configuration: str) -> None:
    trainer = make_trainer(LayoutTrainer, planned_dataset, configuration, batch_size=8, **DEVICE)
    trainer.initialize()
    trainer.prepare_unlabelled()
    cases: UnlabelledCases = trainer.unlabelled_cases(with_pseudo_labels=False)
    make_pseudo_labels(cases, cases.identifiers, trainer.pseudo_labels_folder(),
                       trainer.configuration_manager.patch_size, lambda image, layout: layout)
    train, _ = trainer.get_dataloaders()
    for _ in range(3):
        batch = next(train)
        layout, target = batch["data_u"][:, -3], batch["target_u"]
        assert target.shape == (8, 1, *layout.shape[1:]) and target.dtype == torch.int16
        assert torch.equal(target[:, 0].float(), layout) and set(layout.unique().tolist()) == {0, 1, 2}


def test_volumes_with_regions_and_ignore_label_without_deep_supervision(planned_dataset: Path) -> None:
    relabel(planned_dataset, {**REGIONS[0], "ignore": 3}, REGIONS[1], 3)
    trainer = make_trainer(CPSTrainer, planned_dataset, "3d_fullres", enable_deep_supervision=False, num_epochs=1,
                           **DEVICE)
    trainer.run_training()
    assert all(math.isfinite(value) for entry in trainer.epoch_log.read() for value in entry.values())


def test_processes_end_with_the_training(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net ends those of its own loaders; ours hides one inside."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(SupervisedTrainer, planned_dataset, num_epochs=1, **DEVICE)
    processes = []
    finish = trainer.on_train_epoch_end

    def on_train_epoch_end(outputs: list) -> None:
        processes.extend(trainer.dataloader_train.loader._processes)
        finish(outputs)

    trainer.on_train_epoch_end = on_train_epoch_end
    trainer.run_training()
    assert len(processes) == 1 and not processes[0].is_alive()
