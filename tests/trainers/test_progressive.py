"""Semi-Inf-Net: whose turn it is, whose labels they are, and that they stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_synth.commands.split import split
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.layouts import open_map, write_map
from nnunet_synth.errors import UserError
from nnunet_synth.trainers import SemiInfNetTrainer, SupervisedTrainer
from nnunet_synth.trainers.progressive import num_due
from tests.conftest import DATASET_ID
from tests.reference.progressive import training_sets
from tests.trainers.runs import make_trainer, resumed, train_until_killed
from tests.trainers.test_hidden_labels import check_hidden_labels_have_no_influence

ONE_BY_ONE = {"cases_at_a_time": 1, "labels_only_share": 0.25, "num_epochs": 4, "save_every": 1, "seed": 3}


@pytest.mark.parametrize(("num_epochs", "first", "num_cases", "group_size"),
                         [(10, 3, 35, 5), (100, 30, 12, 5), (10, 3, 1600, 5), (4, 1, 3, 1), (5, 0, 2, 7), (1, 0, 9, 5)])
def test_groups_join_in_turn_and_all_of_them_before_the_end(num_epochs: int, first: int, num_cases: int,
                                                            group_size: int) -> None:
    cases = [f"case_{number}" for number in range(num_cases)]
    allowed = {len(part) for part in training_sets(cases, group_size)}
    due = [num_due(epoch, num_epochs, first, num_cases, group_size) for epoch in range(num_epochs)]
    assert due[:first] == [0] * first and due[first] > 0 and due[-1] == num_cases
    assert set(due) <= allowed and due == sorted(due)
    if num_epochs - first >= len(allowed) - 1:
        assert set(due) | {0} == allowed, "with time enough, one group at a time"


def test_one_case_after_another(planned_dataset: Path) -> None:
    """Each is labelled once, by the network of that moment, and only labelled cases are drawn from."""
    trainer = make_trainer(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE)
    seen: list[tuple[int, set[str], dict[str, int]]] = []
    weights: list[dict[str, torch.Tensor]] = []
    step, label_next = trainer.train_step, trainer.label_next

    def train_step(batch: dict) -> dict:
        written = {path.stem: path.stat().st_mtime_ns for path in trainer._labels_folder.glob("*.b2nd")}
        seen.append((trainer.current_epoch, set(batch["keys_u"]) if "target_u" in batch else set(), written))
        return step(batch)

    def spying_label_next(number: int) -> None:
        weights.append({key: value.clone() for key, value in trainer.network.state_dict().items()})
        label_next(number)

    trainer.train_step, trainer.label_next = train_step, spying_label_next
    trainer.run_training()
    order = trainer._order
    assert sorted(order) == trainer.experiment.pool_ids and len(order) == 3
    for epoch, drawn, written in seen:
        assert set(written) == set(order[:epoch]) and drawn <= set(order[:epoch]) and (epoch == 0 or drawn)
    times = seen[-1][2]
    assert all(times[case_id] == written[case_id] for _, _, written in seen for case_id in written), "labels stay"
    assert [entry["pseudo_labelled"] for entry in trainer.epoch_log.read()] == [0, 1, 2, 3]
    assert [entry["loss_pseudo"] != 0 for entry in trainer.epoch_log.read()] == [False, True, True, True]

    # the last case's label is what the network of that moment says, by nnU-Net's own predictor
    trainer.network.load_state_dict(weights[-1])
    image, _, layout, _ = trainer.unlabelled_cases(with_pseudo_labels=False).load_case(order[2])
    stored = open_map(trainer._labels_folder / f"{order[2]}.b2nd")[0]
    said = trainer.present_teacher().label(image[:], layout[:])
    assert np.array_equal(stored[stored >= 0], said[stored >= 0])


def test_the_order_is_random_and_follows_the_seed(planned_dataset: Path) -> None:
    def order(seed: int) -> list[str]:
        trainer = make_trainer(SemiInfNetTrainer, planned_dataset, seed=seed)
        trainer.initialize()
        trainer.prepare_cases()
        trainer.prepare_training()
        return trainer._order

    orders = [order(seed) for seed in range(6)]
    assert order(0) == orders[0] and len({tuple(each) for each in orders}) > 1


def test_before_the_first_labels_it_is_supervised(planned_dataset: Path) -> None:
    ours = make_trainer(SemiInfNetTrainer, planned_dataset, seed=0)
    ours.on_train_start()
    stock = make_trainer(SupervisedTrainer, planned_dataset, seed=0)
    stock.initialize()
    stock.network.load_state_dict({key: value.clone() for key, value in ours.network.state_dict().items()})
    batch = next(ours.dataloader_train)
    assert ours.train_step(batch)["loss"] == stock.train_step(batch)["loss"]
    assert all(map(torch.equal, ours.network.parameters(), stock.network.parameters()))


def test_pseudo_labels_weigh_as_much_as_labels(planned_dataset: Path) -> None:
    trainer = make_trainer(SemiInfNetTrainer, planned_dataset, seed=0, labels_only_share=0.0)
    trainer.run_training()
    for entry in trainer.epoch_log.read():
        assert entry["loss"] == pytest.approx(entry["loss_supervised"] + entry["loss_pseudo"], abs=1e-5)
        assert entry["loss_pseudo"] != 0


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_resume_is_bit_identical_between_any_two_groups(planned_dataset: Path, killed_in: int) -> None:
    whole = make_trainer(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE)
    whole.run_training()
    expected = list(whole.network.state_dict().values())
    labels = {path.name: open_map(path)[:] for path in whole._labels_folder.glob("*.b2nd")}
    train_until_killed(make_trainer(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE), num_epochs=killed_in)
    torch.manual_seed(99)
    continued = resumed(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE)
    continued.run_training()
    assert all(map(torch.equal, expected, continued.network.state_dict().values()))
    assert all(np.array_equal(labels[path.name], open_map(path)[:]) for path in continued._labels_folder.glob("*.b2nd"))


def test_labels_that_another_run_left_behind_are_not_believed(planned_dataset: Path) -> None:
    def train() -> SemiInfNetTrainer:
        trainer = make_trainer(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE)
        trainer.run_training()
        return trainer

    first = train()
    for path in first._labels_folder.glob("*.b2nd"):
        shape = open_map(path).shape
        path.unlink()
        write_map(np.ones(shape, np.int16), path, (32, 32))
    assert all(map(torch.equal, first.network.parameters(), train().network.parameters()))


def test_hidden_labels_have_no_influence(planned_dataset: Path) -> None:
    fold, = split(DATASET_ID, 0, [2])
    experiment = load_experiment(DATASET_ID, "2d", fold)

    def train() -> list[torch.Tensor]:
        trainer = make_trainer(SemiInfNetTrainer, planned_dataset, fold=fold, seed=3, labels_only_share=0.0)
        trainer.run_training()
        assert set(experiment.unlabelled_ids) < set(trainer._order)
        return list(trainer.network.state_dict().values())

    check_hidden_labels_have_no_influence(train, planned_dataset, fold)


def test_a_run_whose_labels_are_gone_is_not_resumed(planned_dataset: Path) -> None:
    trainer = make_trainer(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE)
    train_until_killed(trainer, num_epochs=3)
    (trainer._labels_folder / f"{trainer._order[0]}.b2nd").unlink()
    with pytest.raises(UserError, match="1 pseudo-label.* of the run are gone .*start again without --c"):
        resumed(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE).run_training()


def test_a_run_whose_pool_has_changed_is_not_resumed(planned_dataset: Path) -> None:
    train_until_killed(make_trainer(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE), num_epochs=2)
    for path in (planned_dataset / "nnUNet_raw").glob("*/imagesUl/phantom_ul_001*"):
        path.unlink()
    with pytest.raises(UserError, match="unlabelled cases are not those that the run was begun with"):
        resumed(SemiInfNetTrainer, planned_dataset, **ONE_BY_ONE).run_training()
