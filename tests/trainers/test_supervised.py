"""SupervisedTrainer: stock nnU-Net's step on the labelled loader of all trainers, where there is no pool too."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_synth.commands.split import split
from nnunet_synth.data.loaders import split_channels
from nnunet_synth.errors import UserError
from nnunet_synth.trainers import CPSTrainer, SupervisedTrainer
from tests.conftest import DATASET_ID
from tests.trainers.runs import make_trainer
from tests.trainers.test_hidden_labels import check_hidden_labels_have_no_influence


def without_pool(root: Path) -> None:
    raw, = (root / "nnUNet_raw").iterdir()
    for name in ("imagesUl", "layoutsUl"):
        shutil.rmtree(raw / name)


def kinds(loader: nnUNetDataLoader) -> list[tuple[type, float]]:
    """Each transform with its probability."""
    return [(type(getattr(transform, "transform", transform)), getattr(transform, "apply_probability", 1))
            for transform in loader.transforms.transforms]


@pytest.mark.parametrize("enable_deep_supervision", [True, False])
def test_a_step_is_stock_nnunets(planned_dataset: Path, enable_deep_supervision: bool) -> None:
    """Loss, gradient and update, over three steps (the third has momentum and clipping behind it)."""
    ours = make_trainer(SupervisedTrainer, planned_dataset, seed=0, enable_deep_supervision=enable_deep_supervision)
    ours.on_train_start()
    stock = make_trainer(nnUNetTrainer, planned_dataset)
    stock.enable_deep_supervision = enable_deep_supervision
    stock.initialize()
    stock.network.load_state_dict(copy.deepcopy(ours.network.state_dict()))
    for trainer in (ours, stock):
        trainer.lr_scheduler.step(0)
    for _ in range(3):
        batch = next(ours.dataloader_train)
        losses = ours.train_step(batch)
        expected = stock.train_step({**batch, "data": split_channels(batch["data"])[0]})
        assert losses["loss"] == losses["loss_supervised"] == expected["loss"]
        for mine, theirs in zip(ours.network.parameters(), stock.network.parameters(), strict=True):
            # the coarsest head has no weight in nnU-Net's loss: no gradient in either
            assert (mine.grad is None and theirs.grad is None) or torch.equal(mine.grad, theirs.grad)
            assert torch.equal(mine, theirs)


def test_it_needs_no_pool(planned_dataset: Path) -> None:
    without_pool(planned_dataset)
    trainer = make_trainer(SupervisedTrainer, planned_dataset, seed=0)
    trainer.run_training()
    assert not list(planned_dataset.glob("nnUNet_preprocessed/*/*_unlabelled"))
    assert [entry["loss"] for entry in trainer.epoch_log.read()] == \
        [entry["loss_supervised"] for entry in trainer.epoch_log.read()]


def test_the_labelled_loader_is_that_of_the_others(planned_dataset: Path) -> None:
    """Same cases, same batch, same channels, same augmentations."""
    trainers = [make_trainer(each, planned_dataset, seed=0) for each in (SupervisedTrainer, CPSTrainer)]
    for trainer in trainers:
        trainer.initialize()
        trainer.prepare_cases()
    ours, theirs = (trainer.get_dataloaders()[0].data_loader for trainer in trainers)
    labelled = theirs.labelled
    assert type(ours) is type(labelled) and ours._data.identifiers == labelled._data.identifiers
    assert kinds(ours) == kinds(labelled) and ours.batch_size == labelled.batch_size
    assert next(ours)["data"].shape == next(labelled)["data"].shape
    assert ours.oversample_foreground_percent == labelled.oversample_foreground_percent


def test_hidden_labels_have_no_influence(planned_dataset: Path) -> None:
    fold, = split(DATASET_ID, 0, [2])

    def train() -> list[torch.Tensor]:
        trainer = make_trainer(SupervisedTrainer, planned_dataset, fold=fold, seed=3)
        trainer.run_training()
        return list(trainer.network.state_dict().values())

    check_hidden_labels_have_no_influence(train, planned_dataset, fold)


def test_lung_only_input_without_a_pool(planned_dataset: Path) -> None:
    without_pool(planned_dataset)
    trainer = make_trainer(SupervisedTrainer, planned_dataset, seed=0, mask_outside_layout=True)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    image, layout, _, _ = split_channels(batch["data"])
    x_l, _ = trainer.labelled_to_device(batch)
    assert (layout == 0).any() and torch.equal(x_l[:, 0][layout > 0], image[:, 0][layout > 0])
    assert (x_l[:, 0][layout == 0] == x_l.new_tensor(trainer.lowest_intensity()[0])).all()


def test_passes_over_scans_that_it_does_not_read_are_refused(planned_dataset: Path) -> None:
    with pytest.raises(UserError, match="epochs_over_unlabelled counts passes.*num_epochs"):
        make_trainer(SupervisedTrainer, planned_dataset, num_epochs=None, epochs_over_unlabelled=3)


def test_a_training_begun_anew_keeps_what_the_finished_one_measured(planned_dataset: Path) -> None:
    first = make_trainer(CPSTrainer, planned_dataset, seed=0, preview_every=1)
    first.run_training()
    folder = Path(first.output_folder)
    log = (folder / "semi_supervised.jsonl").read_bytes()
    pictures = sorted(path.name for path in (folder / "previews").iterdir())
    assert len(log.splitlines()) == 2 and pictures

    again = make_trainer(CPSTrainer, planned_dataset, seed=1, preview_every=0)
    again.run_training()
    kept, = folder.glob("semi_supervised_*.jsonl")
    assert kept.read_bytes() == log != (folder / "semi_supervised.jsonl").read_bytes()
    kept_pictures, = folder.glob("previews_*")
    assert sorted(path.name for path in kept_pictures.iterdir()) == pictures
