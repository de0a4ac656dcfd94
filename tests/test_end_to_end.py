"""The main job by its real commands, from the wheel in a fresh environment; then its model in one without us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention
import torch

from nnunet_synth._register import VARIABLE
from tests.conftest import DATASET_ID, FOLDERS
from tests.environments import Environment, build_wheel, run

NUM_EPOCHS = 4
TRAIN = f"nnUNetv2_train {DATASET_ID} 2d 0 -tr SACPSTrainer -device cpu"
PATIENCE = 300      # s, for the slowest step on a busy machine


@pytest.fixture
def with_us(tmp_path: Path) -> Environment:
    """Nothing but the wheel was installed here, and no variable was set to make nnU-Net find it."""
    pytest.importorskip("build", reason="needs the extra `test`")
    environment = Environment(tmp_path / "with")
    environment.pip("install", "--no-deps", "--ignore-installed", build_wheel(tmp_path / "dist"))
    environment.add_scripts("nnunetv2")
    assert VARIABLE not in environment.variables
    imported = environment.python("import nnunet_synth; print(nnunet_synth.__file__)").stdout.strip()
    assert Path(imported).is_relative_to(environment.site_packages)
    return environment


@pytest.fixture
def without_us(tmp_path: Path) -> Environment:
    """Somebody else's machine, with nnU-Net alone and folders of its own."""
    environment = Environment(tmp_path / "without")
    environment.add_scripts("nnunetv2")
    found = environment.python("from importlib.util import find_spec\n"
                               "print([find_spec(name) is not None for name in ('nnunetv2', 'nnunet_synth')])")
    assert found.stdout.strip() == "[True, False]", "run the tests from an editable install, which is not seen here"
    for name in FOLDERS:
        environment.variables[name] = str(tmp_path / "elsewhere" / name)
        Path(environment.variables[name]).mkdir(parents=True)
    return environment


@pytest.mark.slow
def test_the_whole_job(planned_dataset: Path, edit_plans, with_us: Environment, without_us: Environment) -> None:
    edit_plans(num_epochs=NUM_EPOCHS, num_iterations_per_epoch=3, num_val_iterations_per_epoch=1, save_every=1,
               preview_every=2, seed=0, num_styles=3)
    dataset, = (path.name for path in (planned_dataset / "nnUNet_raw").iterdir())
    results = planned_dataset / "nnUNet_results" / dataset
    fold = results / "SACPSTrainer__nnUNetPlans__2d" / "fold_0"

    def do(line: str, environment: Environment = with_us) -> str:
        return run(environment.command(line), cwd=environment.folder, env=environment.variables,
                   timeout=PATIENCE).stdout

    said = do(f"nnunet_synth preprocess {DATASET_ID} 2d --jobs 1")
    assert "preprocessed 3 unlabelled case(s) and 9 layout(s)" in said
    said = do(f"nnunet_synth pretrain {DATASET_ID} 2d 0 --synthesizer sean --preset tiny --steps 10 --device cpu "
              "--perceptual off")
    assert "segmentability" in said and (results / "sean__nnUNetPlans__2d" / "fold_0" / "model.safetensors").exists()

    kill_when(lambda: (fold / "checkpoint_latest.pth").exists(), with_us, TRAIN)
    interrupted = torch.load(fold / "checkpoint_latest.pth", weights_only=True)
    assert 1 <= interrupted["current_epoch"] < NUM_EPOCHS and not (fold / "checkpoint_final.pth").exists()

    do(f"{TRAIN} --c")
    log = [json.loads(line) for line in (fold / "semi_supervised.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == list(range(NUM_EPOCHS))
    assert all(entry["loss_synthetic"] != 0 for entry in log)
    final = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == NUM_EPOCHS and len(final["logging"]["ema_fg_dice"]) == NUM_EPOCHS
    assert_same_as_never_interrupted(final, with_us, planned_dataset, fold)

    (fold / "validation" / "summary.json").unlink()
    do(f"{TRAIN} --val")
    assert len(json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]) > 0

    images = planned_dataset / "nnUNet_raw" / dataset / "imagesTs"
    predict = f"nnUNetv2_predict -i {images} -d {DATASET_ID} -c 2d -f 0 -tr SACPSTrainer -device cpu -npp 1 -nps 1 " \
              "--disable_tta --save_probabilities -o"
    archive = planned_dataset / "model.zip"
    do(f"{predict} {planned_dataset / 'ours'}")
    do(f"nnUNetv2_export_model_to_zip -d {DATASET_ID} -c 2d -f 0 -tr SACPSTrainer -o {archive}")

    do(f"nnUNetv2_install_pretrained_model_from_zip {archive}", without_us)
    do(f"{predict} {planned_dataset / 'theirs'}", without_us)
    assert_same_predictions(planned_dataset / "ours", planned_dataset / "theirs", num_cases=len(list(images.iterdir())))


def kill_when(condition, environment: Environment, line: str) -> None:
    """Start a command and `kill -9` it, with all its children, as soon as the condition holds."""
    output = environment.folder / "killed.txt"
    with open(output, "w") as file:
        process = subprocess.Popen(environment.command(line), cwd=environment.folder, env=environment.variables,
                                   stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def assert_same_as_never_interrupted(final: dict, environment: Environment, root: Path, fold: Path) -> None:
    """The same training once more, without an interruption: both networks end with the same bits."""
    elsewhere = root / "uninterrupted"
    dataset_results = fold.parents[1]
    (elsewhere / dataset_results.name).mkdir(parents=True)
    (elsewhere / dataset_results.name / "sean__nnUNetPlans__2d").symlink_to(dataset_results / "sean__nnUNetPlans__2d")
    environment.variables["nnUNet_results"] = str(elsewhere)
    path = elsewhere / dataset_results.name / fold.parent.name / fold.name / "checkpoint_final.pth"
    kill_when(path.exists, environment, TRAIN)      # what is killed is the final validation
    environment.variables["nnUNet_results"] = str(root / "nnUNet_results")

    uninterrupted = torch.load(path, weights_only=True)
    for whole, resumed in ((uninterrupted["network_weights"], final["network_weights"]),
                           (uninterrupted["nnunet_synth"]["peer_weights"], final["nnunet_synth"]["peer_weights"])):
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def assert_same_predictions(ours: Path, theirs: Path, num_cases: int) -> None:
    """Voxel-identical segmentations, and the probabilities too: few epochs may leave nothing but background."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in ours.glob("*.nii.gz"))
    assert len(cases) == num_cases > 0
    for case in cases:
        segmentations, probabilities = [], []
        for folder in (ours, theirs):
            segmentations.append(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))))
            probabilities.append(np.load(folder / f"{case}.npz", allow_pickle=False)["probabilities"])
        assert np.array_equal(*segmentations)
        assert np.ptp(probabilities[0]) > 0 and np.array_equal(*probabilities)
