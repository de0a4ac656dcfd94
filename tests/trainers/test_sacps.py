"""SACPSTrainer and CPSTrainer end to end in one process: resume, checkpoints, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_synth.errors import UserError
from nnunet_synth.trainers import CPSTrainer, SACPSTrainer
from nnunet_synth.trainers.checkpoint import OUR_KEY
from nnunet_synth.trainers.configured import unwrap
from tests.trainers.runs import make_trainer, resumed, save_untrained_sean, train_until_killed


def weights_of(trainer: CPSTrainer) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, network in (("network", trainer.network), ("peer", trainer.peer))
            for key, value in unwrap(network).state_dict().items()}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_sacps_trains_and_moves_both_networks(planned_dataset: Path, configuration: str) -> None:
    save_untrained_sean(configuration)
    trainer = make_trainer(SACPSTrainer, planned_dataset, configuration, preview_every=1, seed=0)
    trainer.initialize()
    before = {key: value.clone() for key, value in weights_of(trainer).items()}
    trainer.run_training()
    after = weights_of(trainer)
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert any(key.startswith("network.") for key in moved) and any(key.startswith("peer.") for key in moved)
    log = trainer.epoch_log.read()
    assert [entry["epoch"] for entry in log] == [0, 1]
    for entry in log:
        assert entry["loss_synthetic"] != 0 and entry["synthetic_used"] > 0 and entry["seconds_synthesis"] > 0
        assert entry["loss"] == pytest.approx(
            entry["loss_supervised"] + 0.5 * (entry["loss_pseudo"] + entry["loss_synthetic"]), abs=1e-5)
    assert (Path(trainer.output_folder) / "previews" / "epoch_0002.png").exists()


@pytest.mark.parametrize("trainer_class", [CPSTrainer, SACPSTrainer])
def test_resume_is_bit_identical(planned_dataset: Path, trainer_class: type[CPSTrainer]) -> None:
    """3 epochs at once = 2 epochs, killed, resumed for the third: both networks, to the last bit."""
    settings = {"num_epochs": 3, "save_every": 1, "seed": 7}
    save_untrained_sean()
    whole = make_trainer(trainer_class, planned_dataset, **settings)
    whole.run_training()

    train_until_killed(make_trainer(trainer_class, planned_dataset, **settings), num_epochs=2)
    torch.manual_seed(99)       # whatever happened in between
    continued = resumed(trainer_class, planned_dataset, **settings)
    assert continued.current_epoch == 2
    continued.run_training()

    expected, got = weights_of(whole), weights_of(continued)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    for mine, other in ((whole.optimizer, continued.optimizer), (whole.peer_optimizer, continued.peer_optimizer)):
        for state, resumed_state in zip(mine.state.values(), other.state.values(), strict=True):
            assert torch.equal(state["momentum_buffer"], resumed_state["momentum_buffer"])
    assert [entry["epoch"] for entry in continued.epoch_log.read()] == [0, 1, 2]
    assert not torch.equal(expected["network.decoder.seg_layers.1.weight"],
                           expected["peer.decoder.seg_layers.1.weight"])


def test_resume_without_restored_random_numbers_differs(planned_dataset: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above: it is the random numbers that make the resumed run the same."""
    settings = {"num_epochs": 2, "save_every": 1, "seed": 7}
    whole = make_trainer(CPSTrainer, planned_dataset, **settings)
    whole.run_training()
    train_until_killed(make_trainer(CPSTrainer, planned_dataset, **settings), num_epochs=1)
    monkeypatch.setattr("nnunet_synth.trainers.configured.restore_rng", lambda state: None)
    continued = resumed(CPSTrainer, planned_dataset, **settings)
    continued.run_training()
    expected, got = weights_of(whole), weights_of(continued)
    assert not all(torch.equal(expected[key], got[key]) for key in expected)


def test_checkpoint_is_a_stock_model(planned_dataset: Path) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, seed=0)
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert {"peer_weights", "peer_optimizer", "rng", "settings"} <= checkpoint[OUR_KEY].keys()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    stored = unwrap(trainer.network).state_dict()
    assert all(torch.equal(stored[key], value) for key, value in predictor.list_of_parameters[0].items())


def test_checkpoint_write_that_fails_leaves_the_old_one(planned_dataset: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, seed=0)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def full_disk(checkpoint: dict, target: Path) -> None:
        Path(target).write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full_disk)
    with pytest.raises(OSError):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("*checkpoint*")] == [path.name]


def test_pretrained_weights_reach_the_peer_but_not_its_heads(planned_dataset: Path) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    source = make_trainer(CPSTrainer, planned_dataset, seed=5)
    source.run_training()
    trainer = make_trainer(CPSTrainer, planned_dataset, seed=6)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(Path(source.output_folder) / "checkpoint_final.pth"))
    trainer.on_train_start()
    network, peer = unwrap(trainer.network).state_dict(), unwrap(trainer.peer).state_dict()
    heads = [key for key in network if "seg_layers" in key and key.endswith("weight")]
    assert heads and all(not torch.equal(network[key], peer[key]) for key in heads)
    assert all(torch.equal(network[key], peer[key]) for key in network if "seg_layers" not in key)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_no_synthesizer_names_the_line_to_run(planned_dataset: Path) -> None:
    trainer = make_trainer(SACPSTrainer, planned_dataset)
    with pytest.raises(UserError, match="nnunet_synth pretrain 701 2d 0 --synthesizer sean"):
        trainer.run_training()


def test_cascade_is_refused_before_anything_is_written(planned_dataset: Path, edit_plans) -> None:
    plans_file, = (planned_dataset / "nnUNet_preprocessed").glob("*/nnUNetPlans.json")
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "2d"}
    plans_file.write_text(json.dumps(plans))
    with pytest.raises(UserError, match="cascade"):
        make_trainer(CPSTrainer, planned_dataset, "3d_cascade_fullres")
    assert not list((planned_dataset / "nnUNet_results").iterdir())


def test_unknown_setting_is_refused_before_anything_is_written(planned_dataset: Path) -> None:
    with pytest.raises(UserError, match="pseudo_wieght.*did you mean pseudo_weight"):
        make_trainer(CPSTrainer, planned_dataset, pseudo_wieght=1.0)
    assert not list((planned_dataset / "nnUNet_results").iterdir())


def test_no_unlabelled_scans(planned_dataset: Path) -> None:
    for path in planned_dataset.glob("nnUNet_raw/*/imagesUl/*"):
        path.unlink()
    with pytest.raises(UserError, match="no unlabelled scans.*imagesUl"):
        make_trainer(CPSTrainer, planned_dataset).run_training()


def test_fold_beyond_the_list(planned_dataset: Path) -> None:
    make_trainer(CPSTrainer, planned_dataset).do_split()        # makes the five default folds
    with pytest.raises(UserError, match="no fold 7"):
        make_trainer(CPSTrainer, planned_dataset, fold=7).run_training()


def test_synthesizer_trained_on_a_validation_case(planned_dataset: Path) -> None:
    folder = save_untrained_sean(fold=1)
    with pytest.raises(UserError, match="trained on validation case"):
        make_trainer(SACPSTrainer, planned_dataset, synthesizer_from=str(folder)).run_training()


def test_resume_from_a_stock_or_damaged_checkpoint(planned_dataset: Path) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    torch.save({"network_weights": {}, "trainer_name": "nnUNetTrainer"}, path)
    with pytest.raises(UserError, match="written by stock nnU-Net"):
        trainer.load_checkpoint(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        trainer.load_checkpoint(str(path))


def test_a_label_head_that_the_synthesizer_lacks_is_refused(planned_dataset: Path) -> None:
    save_untrained_sean()
    with pytest.raises(UserError, match="sean has none"):
        make_trainer(SACPSTrainer, planned_dataset, label_source="head").run_training()


def test_no_cuda_when_asked_for(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="sees no CUDA device"):
        make_trainer(CPSTrainer, planned_dataset, device="cuda")
    assert not list((planned_dataset / "nnUNet_results").iterdir())
