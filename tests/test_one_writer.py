"""Every command that writes somewhere for a while, and every training, keeps a second one out of there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_synth.cli import main
from nnunet_synth.data.experiment import Experiment, load_experiment
from nnunet_synth.errors import UserError
from nnunet_synth.lock import Lock, lock_file
from nnunet_synth.trainers import CPSTrainer, SupervisedTrainer
from nnunet_synth.trainers.one_training import only_training
from tests.conftest import DATASET_ID
from tests.makers.other_process import written_by_another
from tests.trainers.runs import make_trainer, save_untrained_sean

PRETRAIN = f"pretrain {DATASET_ID} 2d 0 --preset tiny --steps 1 --batch-size 1 --device cpu --perceptual off"
SAMPLE = f"sample {DATASET_ID} 2d 0 -n 1 --device cpu"

# What is run, and what it would write, of the dataset and of nnUNet_raw.
LINES: dict[str, tuple[str, Callable[[Experiment], Path]]] = {
    "preprocess": (f"preprocess {DATASET_ID} 2d --force --jobs 1", lambda experiment: experiment.pool_folder),
    "layouts": (f"layouts {DATASET_ID} --overwrite", lambda experiment: experiment.raw_folder),
    "masked images": (f"layouts {DATASET_ID} --images {{raw}}/imagesTr --masked {{raw}}_masked",
                      lambda experiment: Path(f"{experiment.raw_folder}_masked")),
    "pretrain": (PRETRAIN, lambda experiment: experiment.synthesizer_folder("sean")),
    "pretrain --force": (f"{PRETRAIN} --force", lambda experiment: experiment.synthesizer_folder("sean")),
    "mask source": (f"{PRETRAIN} --mask-source v2m", lambda experiment: experiment.synthesizer_folder("v2m")),
    "select": (f"select {DATASET_ID} 2d 0 --segmenter none -n 4 --classifier resnet18 --device cpu",
               lambda experiment: experiment.synthesizer_folder("selection")),
    "sample as a dataset": (f"{SAMPLE} --as-dataset 801 --name Drawn",
                            lambda experiment: experiment.raw_folder.with_name("Dataset801_Drawn")),
    "sample": (f"{SAMPLE} --output {{raw}}_drawn", lambda experiment: Path(f"{experiment.raw_folder}_drawn")),
}


def files(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize("name", LINES)
def test_the_second_run_says_who_holds_it_and_changes_nothing(planned_dataset: Path, capsys, name: str) -> None:
    save_untrained_sean()
    experiment = load_experiment(DATASET_ID, "2d", 0)
    line, target = LINES[name]
    before = files(planned_dataset)
    with written_by_another(target(experiment)) as pid:
        assert main(line.format(raw=experiment.raw_folder).split()) == 2
        said = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
        assert said == [text for text in said if f"{target(experiment)} is being written by process {pid} on" in text]
        assert len(said) == 1
    assert files(planned_dataset) == before


def test_when_it_has_died_the_next_one_runs(planned_dataset: Path) -> None:
    experiment = load_experiment(DATASET_ID, "2d", 0)
    with written_by_another(experiment.pool_folder):
        pass                # killed
    assert lock_file(experiment.pool_folder).exists()
    assert main(LINES["preprocess"][0].split()) == 0
    assert len(list(experiment.pool_folder.glob("*.pkl"))) == 3
    assert not lock_file(experiment.pool_folder).exists()


# ----------------------------------------------------------------------------------------------------------------------
# Trainings


def folder_of(experiment: Experiment, trainer: type) -> Path:
    return experiment.results_folder / f"{trainer.__name__}__nnUNetPlans__2d" / f"fold_{experiment.fold}"


def test_a_second_training_of_a_fold_begins_not_even_a_log(planned_dataset: Path) -> None:
    folder = folder_of(load_experiment(DATASET_ID, "2d", 0), SupervisedTrainer)
    with written_by_another(folder) as pid:
        with pytest.raises(UserError, match=f"is being written by process {pid} on host"):
            make_trainer(SupervisedTrainer, planned_dataset)
        assert not folder.exists()
        other = make_trainer(SupervisedTrainer, planned_dataset, fold=1)
    assert Path(other.output_folder) == folder.with_name("fold_1")
    assert Path(make_trainer(SupervisedTrainer, planned_dataset).output_folder) == folder


def test_one_that_comes_between_construction_and_training(planned_dataset: Path) -> None:
    trainer = make_trainer(SupervisedTrainer, planned_dataset)
    with written_by_another(Path(trainer.output_folder)) as pid:
        for run in (trainer.run_training, trainer.perform_actual_validation):
            with pytest.raises(UserError, match=f"process {pid} "):
                run()


def test_it_is_held_for_training_and_validation_and_keeps_no_prediction_out(planned_dataset: Path,
                                                                            monkeypatch) -> None:
    trainer = make_trainer(SupervisedTrainer, planned_dataset)
    folder = Path(trainer.output_folder)
    held = []

    def look(method: Callable) -> Callable:
        def looking(*args: object) -> object:
            held.append(not Lock(lock_file(folder)).acquire())
            return method(*args)

        return looking

    trainer.on_train_start, trainer.on_train_end = look(trainer.on_train_start), look(trainer.on_train_end)
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", look(lambda trainer, probabilities: None))
    trainer.run_training()
    assert not lock_file(folder).exists()
    trainer.perform_actual_validation()
    assert held == [True, True, True] and not lock_file(folder).exists()

    with written_by_another(folder):
        predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder.parent), None, "checkpoint_final.pth")    # fold_0
        image = next((planned_dataset / "nnUNet_raw").glob("*/imagesTs/*_0000.nii.gz"))
        predictor.predict_from_files_sequential([[str(image)]], [str(planned_dataset / "predicted")])
    assert (planned_dataset / "predicted.nii.gz").is_file()


def test_of_several_processes_of_one_training_the_first_holds_it(planned_dataset: Path) -> None:
    trainer = make_trainer(SupervisedTrainer, planned_dataset)
    with only_training(trainer):
        trainer.local_rank = 1
        with only_training(trainer):
            pass
        trainer.local_rank = 0
        with pytest.raises(UserError, match="is being written"), only_training(trainer):
            pass


def test_trainings_of_several_folds_wait_for_the_pool(planned_dataset: Path, monkeypatch, capfd) -> None:
    """Started together on a cluster, the first one preprocesses it."""
    monkeypatch.setattr("nnunet_synth.lock.POLL", 0.01)
    experiment = load_experiment(DATASET_ID, "2d", 0)
    trainer = make_trainer(CPSTrainer, planned_dataset)
    trainer.initialize()
    with written_by_another(experiment.pool_folder) as pid, end_after(pid, seconds=1):
        trainer.prepare_cases()
    assert f"waiting for process {pid} on host" in capfd.readouterr().err
    assert len(list(experiment.pool_folder.glob("*.pkl"))) == 3


@contextmanager
def end_after(pid: int, seconds: float) -> Iterator[None]:
    with subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill {pid}"]):
        yield
