"""RGB pictures in nnU-Net's own form, three channels in one CASE_0000.png: pool, training, pretraining; and pictures of
other channels than the dataset's, which are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from PIL import Image

from nnunet_synth.commands.pretrain import pretrain
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.errors import UserError
from nnunet_synth.trainers import MeanTeacherTrainer, SACPSTrainer
from tests.conftest import DATASET_ID, FOLDERS, plan_and_preprocess, set_folders
from tests.trainers.runs import make_trainer

RGB, GRAY = ("red", "green", "blue"), ("gray",)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [48, 48, 3] with a bright disc, whose channels differ, and its label."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48] - rng.integers(18, 30, 2)[:, None, None]
    label = (y ** 2 + x ** 2 < 64).astype(np.uint8)
    colours = rng.integers(0, 60, (48, 48, 3)) + label[..., None] * (150, 90, 40) + (10, 60, 110)
    return colours.clip(0, 255).astype(np.uint8), label


def write_pictures(root: Path, channels: tuple[str, ...]) -> None:
    raw = root / "nnUNet_raw" / f"Dataset{DATASET_ID}_Pictures"
    for folder in ("imagesTr", "labelsTr", "imagesUl"):
        (raw / folder).mkdir(parents=True)
    for number in range(9):
        picture, label = draw(number)
        part = "Tr" if number < 6 else "Ul"
        Image.fromarray(picture if channels == RGB else picture[..., 0]).save(
            raw / f"images{part}" / f"case_{number}_0000.png")
        if part == "Tr":
            Image.fromarray(label).save(raw / "labelsTr" / f"case_{number}.png")
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {"background": 0, "disc": 1}, "numTraining": 6, "file_ending": ".png"}))


def planned_pictures(root: Path, channels: tuple[str, ...]) -> Path:
    write_pictures(root, channels)
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, root)
        patch.setenv("nnUNet_n_proc_DA", "1")
        plan_and_preprocess(root)
    return root


@pytest.fixture(scope="module")
def rgb_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planned_pictures(tmp_path_factory.mktemp("rgb"), RGB)


@pytest.fixture(scope="module")
def gray_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planned_pictures(tmp_path_factory.mktemp("gray"), GRAY)


def copied(template: Path, root: Path, patch: pytest.MonkeyPatch) -> Path:
    for name in FOLDERS:
        shutil.copytree(template / name, root / name)
    set_folders(patch, root)
    return root


@pytest.fixture
def rgb(rgb_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(rgb_template, tmp_path, monkeypatch)


@pytest.fixture
def gray(gray_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(gray_template, tmp_path, monkeypatch)


def pool_file(root: Path, number: int = 6, channel: int = 0) -> Path:
    return root / "nnUNet_raw" / f"Dataset{DATASET_ID}_Pictures" / "imagesUl" / f"case_{number}_{channel:04d}.png"


def test_an_rgb_pool_is_what_nnunet_would_make(rgb: Path) -> None:
    experiment = load_experiment(DATASET_ID, "2d")
    assert preprocess_pool(experiment).missing_cases == ["case_6", "case_7", "case_8"]
    data, _, _, _ = nnUNetDatasetBlosc2(str(experiment.pool_folder), ["case_6"]).load_case("case_6")
    assert data.shape == (3, 1, 48, 48)
    expected, _, _ = experiment.configuration_manager.preprocessor_class(verbose=False).run_case(
        [str(pool_file(rgb))], None, experiment.plans_manager, experiment.configuration_manager,
        experiment.dataset_json)
    np.testing.assert_array_equal(data[:], expected.astype(np.float32))
    colours = np.asarray(Image.open(pool_file(rgb)), np.float64).transpose(2, 0, 1)[:, None]
    z_scores = (colours - colours.mean((1, 2, 3), keepdims=True)) / colours.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(data[:], z_scores, atol=1e-3)


def test_three_files_of_one_channel_are_the_same_case(rgb: Path) -> None:
    experiment = load_experiment(DATASET_ID, "2d")
    preprocess_pool(experiment)
    whole = nnUNetDatasetBlosc2(str(experiment.pool_folder), ["case_6"]).load_case("case_6")[0][:]
    picture = np.asarray(Image.open(pool_file(rgb)))
    for channel in range(3):
        Image.fromarray(picture[..., channel]).save(pool_file(rgb, channel=channel))
    preprocess_pool(load_experiment(DATASET_ID, "2d"), force=True)
    parts = nnUNetDatasetBlosc2(str(experiment.pool_folder), ["case_6"]).load_case("case_6")[0][:]
    np.testing.assert_array_equal(whole, parts)


def test_training_with_an_rgb_pool(rgb: Path) -> None:
    trainer = make_trainer(MeanTeacherTrainer, rgb)
    trainer.run_training()
    log = trainer.epoch_log.read()
    assert len(log) == 2 and all(np.isfinite(entry["loss_consistency"]) for entry in log)


def test_pretraining_and_sacps_with_rgb(rgb: Path) -> None:
    """The synthesizer is made for the three channels, and its images join the training."""
    meta = pretrain(DATASET_ID, "2d", 0, synthesizer="sean", preset="tiny", steps=2, batch_size=2, device="cpu",
                    perceptual="off")
    assert meta.channel_names == list(RGB)
    trainer = make_trainer(SACPSTrainer, rgb)
    trainer.run_training()
    assert len(trainer.epoch_log.read()) == 2


@pytest.mark.parametrize("mode, message", [
    ("RGB", r"has 3 channel\(s\) \(a colour or palette picture\? save it as gray\), the dataset has 1: gray"),
    ("P", r"has 3 channel\(s\) \(a colour or palette picture\? save it as gray\), the dataset has 1: gray"),
    ("RGBA", r"has 4 channel\(s\) \(colours and transparency\? .*, the dataset has 1: gray"),
    ("LA", "cannot be used: If image has three dimensions")])
def test_colours_in_a_gray_pool_are_refused_by_name(gray: Path, mode: str, message: str) -> None:
    Image.open(pool_file(gray, 7)).convert(mode).save(pool_file(gray, 7))
    experiment = load_experiment(DATASET_ID, "2d")
    with pytest.raises(UserError, match=f"case_7_0000.png {message}") as caught:
        preprocess_pool(experiment)
    assert "\n" not in str(caught.value)
    assert [path.stem for path in experiment.pool_folder.glob("*.pkl")] == ["case_6"]


@pytest.mark.parametrize("mode, number", [("L", 1), ("RGBA", 4)])
def test_other_channels_in_an_rgb_pool_are_refused_by_name(rgb: Path, mode: str, number: int) -> None:
    Image.open(pool_file(rgb, 7)).convert(mode).save(pool_file(rgb, 7))
    with pytest.raises(UserError, match=rf"case_7_0000.png has {number} channel\(s\).*has 3: red, green, blue"):
        preprocess_pool(load_experiment(DATASET_ID, "2d"))
    Image.open(pool_file(rgb, 8)).save(pool_file(rgb, 8, channel=1))
    with pytest.raises(UserError, match="expected case_8_0000.png, case_8_0001.png, case_8_0002.png"):
        preprocess_pool(load_experiment(DATASET_ID, "2d"))
