"""Checkpoints of stock nnU-Net and of ours, read alike and without running anything in them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from nnunet_synth.data.trained_model import read_trained_model
from nnunet_synth.errors import UserError
from nnunet_synth.trainers import CPSTrainer
from tests.trainers.runs import make_trainer, train_stock


def test_stock(planned_dataset: Path) -> None:
    before = time.time()
    model = read_trained_model(train_stock(planned_dataset, fold=1), "cure")
    assert (model.plans["dataset_name"], model.configuration, model.fold) == ("Dataset701_Tiny", "2d", 1)
    assert model.trainer_name == "nnUNetTrainer" and model.mirror_axes == (0, 1) and model.ours == {}
    assert before < model.started < time.time() and model.dataset_json["labels"] == {"background": 0, "infection": 1}


def test_ours(planned_dataset: Path) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, num_styles=3)
    trainer.run_training()
    model = read_trained_model(Path(trainer.output_folder) / "checkpoint_final.pth", "cure")
    assert model.trainer_name == "nnUNetTrainer" and model.ours["settings"]["num_styles"] == 3
    assert model.ours["split_sha256"] == trainer.experiment.split_sha256
    stored = trainer.network.state_dict()
    assert all(torch.equal(stored[name], weight) for name, weight in model.weights.items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_are_nnunets_own(planned_dataset: Path, prefix: str) -> None:
    """Older versions of nnU-Net stored the names of wrappers too."""
    path = train_stock(planned_dataset)
    names = set(read_trained_model(path, "cure").weights)
    content = torch.load(path, weights_only=False)
    content["network_weights"] = {prefix + name: weight for name, weight in content["network_weights"].items()}
    torch.save(content, path)
    assert set(read_trained_model(path, "cure").weights) == names


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_code_is_not_run(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = train_stock(planned_dataset)
    monkeypatch.chdir(tmp_path)
    content = torch.load(path, weights_only=False)
    for foreign in ({**content, "trainer_name": Bomb()}, {"weights": torch.zeros(1)}, [1]):
        torch.save(foreign, path)
        with pytest.raises(UserError, match="cannot be read as a checkpoint of nnU-Net.*: cure") as error:
            read_trained_model(path, "cure")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "exploded").exists()
