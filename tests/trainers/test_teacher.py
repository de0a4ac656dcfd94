"""A teacher: found, refused where it must not teach, and labelling as nnU-Net's own predictor does."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_synth.commands.split import split
from nnunet_synth.data.experiment import Experiment, load_experiment
from nnunet_synth.data.splits import splits_file
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.errors import UserError
from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers import CPSTrainer
from nnunet_synth.trainers.teacher import Teacher, find_teacher, load_teacher, weights_sha256
from tests.conftest import DATASET_ID
from tests.trainers.runs import make_trainer, train_stock

STOCK = "nnUNetTrainer__nnUNetPlans__2d"


def experiment_of(configuration: str = "2d", fold: int | str = 0) -> Experiment:
    return load_experiment(DATASET_ID, configuration, fold)


def load(checkpoint: Path, experiment: Experiment | None = None, threshold: float = 0.5, **options: object) -> Teacher:
    manager = (experiment or experiment_of()).label_manager
    labels = PseudoLabels(threshold, manager.foreground_regions, manager.regions_class_order) \
        if manager.has_regions else PseudoLabels(threshold)
    return load_teacher(checkpoint, experiment or experiment_of(), labels, torch.device("cpu"),
                        **{"lowest_intensity": lambda: [-2.0], **options})


def save_cps(root: Path, fold: int | str = 0, **settings: object) -> Path:
    """One of ours, not trained."""
    trainer = make_trainer(CPSTrainer, root, fold=fold, seed=1, **settings)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    return path


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Change something in a checkpoint, or in a JSON file."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)


def first_pool_image(experiment: Experiment) -> np.ndarray:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    preprocess_pool(experiment)
    case_id = experiment.pool_ids[0]
    return nnUNetDatasetBlosc2(str(experiment.pool_folder), [case_id]).load_case(case_id)[0][:]


# -- which one ---------------------------------------------------------------------------------------------------------


def test_by_default_it_is_stock_nnunet_along_the_chain(planned_dataset: Path) -> None:
    plans_file, = (planned_dataset / "nnUNet_preprocessed").glob("*/nnUNetPlans.json")
    edit(plans_file, lambda plans: plans["configurations"].update({"2d_long": {"inherits_from": "2d"}}))
    with pytest.raises(UserError, match=rf"{STOCK}_long/fold_0/checkpoint_final.pth or .*{STOCK}/fold_0/.*"
                                        r"nnUNetv2_train 701 2d 0\).*trained on this fold: none"):
        find_teacher(experiment_of("2d_long"), None)
    results = experiment_of().results_folder
    for folder in (STOCK, f"{STOCK}_long"):         # the nearer one wins
        path = results / folder / "fold_0" / "checkpoint_final.pth"
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_teacher(experiment_of("2d_long"), None) == path
    assert find_teacher(experiment_of("2d"), None) == results / STOCK / "fold_0" / "checkpoint_final.pth"


def test_by_name_or_path(planned_dataset: Path) -> None:
    path = save_cps(planned_dataset)
    assert find_teacher(experiment_of(), "CPSTrainer__nnUNetPlans__2d") == path
    assert find_teacher(experiment_of(), str(path.parents[1])) == path
    with pytest.raises(UserError, match=r"no teacher at .*UAMTTrainer__Other__2d.*nnUNetv2_train 701 2d 0 "
                                        r"-tr UAMTTrainer -p Other\).*on this fold: CPSTrainer__nnUNetPlans__2d"):
        find_teacher(experiment_of(), "UAMTTrainer__Other__2d")
    with pytest.raises(UserError, match="'nnUNetTrainer' is no results folder"):
        find_teacher(experiment_of(), "nnUNetTrainer")
    with pytest.raises(UserError, match="fold_3/checkpoint_final.pth: train it on this fold"):
        find_teacher(experiment_of(fold=3), "CPSTrainer__nnUNetPlans__2d")


# -- may it teach here? ------------------------------------------------------------------------------------------------


def test_of_another_dataset(planned_dataset: Path) -> None:
    path = save_cps(planned_dataset)
    edit(path, lambda content: content["init_args"]["plans"].update(dataset_name="Dataset702_Other"))
    with pytest.raises(UserError, match="trained on Dataset702_Other, not on Dataset701_Tiny"):
        load(path)


def test_of_another_fold_under_the_name_of_this_one(planned_dataset: Path) -> None:
    path = save_cps(planned_dataset, fold=1)
    moved = path.parents[1] / "fold_0" / path.name
    moved.parent.mkdir()
    shutil.copy(path, moved)
    with pytest.raises(UserError, match="trained on fold 1, this is fold 0"):
        load(moved)


@pytest.mark.parametrize(("change", "words"), [
    ({"labels": {"background": 0, "lesion": 1}}, "labels.*lesion.*infection"),
    ({"labels": {"background": 0, "infection": 1, "other": 2}}, "labels.*other"),
    ({"channel_names": {"0": "MR"}}, "channels.*MR.*CT"),
])
def test_of_other_labels_or_channels(planned_dataset: Path, change: dict, words: str) -> None:
    path = save_cps(planned_dataset)
    edit(path, lambda content: content["init_args"]["dataset_json"].update(change))
    with pytest.raises(UserError, match=f"was trained with {words}.*train it again"):
        load(path)


def test_regions_that_are_written_in_another_order(planned_dataset: Path) -> None:
    """Same names, same values: but where regions overlap, another label wins."""
    regions = {"labels": {"background": 0, "affected": [1, 2], "consolidation": 2}, "regions_class_order": [1, 2]}
    edit(experiment_of().preprocessed_folder / "dataset.json", lambda content: content.update(regions))
    path = save_cps(planned_dataset)
    assert load(path).warnings == []
    edit(path, lambda content: content["init_args"]["dataset_json"].update(regions_class_order=[2, 1]))
    with pytest.raises(UserError, match=r"regions_class_order': \[2, 1\].*this dataset has.*\[1, 2\]"):
        load(path)


@pytest.mark.parametrize(("key", "value"), [("spacing", [2.0, 2.0]),
                                            ("normalization_schemes", ["ZScoreNormalization"])])
def test_of_another_preprocessing(planned_dataset: Path, key: str, value: object) -> None:
    path = save_cps(planned_dataset)
    edit(path, lambda content: content["init_args"]["plans"]["configurations"]["2d"].update({key: value}))
    with pytest.raises(UserError, match="another spacing, orientation, normalisation or resampling"):
        load(path)


def test_a_3d_teacher_cannot_read_2d_cases(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset, "3d_fullres")
    with pytest.raises(UserError, match=r"\(3d_fullres\) was trained on images of another spacing"):
        load(path)


def test_one_of_ours_knows_its_split(planned_dataset: Path) -> None:
    """Same fold, same validation cases, as many training cases: only the hash tells."""
    fold, = split(DATASET_ID, 0, [2])
    path = save_cps(planned_dataset, fold=fold)
    assert load(path, experiment_of(fold=fold)).warnings == []

    def exchange(splits: list[dict]) -> None:
        splits[fold]["train"], splits[fold]["unlabelled"] = splits[fold]["unlabelled"], splits[fold]["train"]

    edit(splits_file(experiment_of().preprocessed_folder), exchange)
    with pytest.raises(UserError, match=f"trained on another split than fold {fold} of splits_final.json is now"):
        load(path, experiment_of(fold=fold))


def test_stock_nnunet_that_agrees_is_taken_with_a_warning(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset)
    validation = path.parent / "validation"
    warning, = load(path).warnings
    assert "cannot be proven (its log counts 4 training and 2 validation cases too)" in warning
    validation.mkdir()
    for case_id in experiment_of().val_ids:
        (validation / f"{case_id}.nii.gz").touch()
    warning, = load(path).warnings
    assert "it predicted 2 of 2 validation cases and no other; its log counts 4 training" in warning
    for log in path.parent.glob("training_log_*"):
        log.unlink()
    shutil.rmtree(validation)
    assert "nothing could be checked" in load(path).warnings[0]


def test_stock_nnunet_that_validated_on_other_cases(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset)
    (path.parent / "validation").mkdir()
    case_id = experiment_of().train_ids[0]
    (path.parent / "validation" / f"{case_id}.nii.gz").touch()
    with pytest.raises(UserError, match=f"validated on {case_id}, which fold 0 of splits_final.json does not hold out"):
        load(path)


def test_stock_nnunet_that_trained_on_more_cases(planned_dataset: Path) -> None:
    """All labels of the fold instead of the two that it may see, with the same validation cases."""
    path = train_stock(planned_dataset)
    splits = splits_file(experiment_of().preprocessed_folder)

    def hide(content: list[dict]) -> None:
        content[0]["train"], content[0]["unlabelled"] = content[0]["train"][:2], content[0]["train"][2:]

    edit(splits, hide)
    with pytest.raises(UserError, match="was trained on 4 and validated on 2 cases, fold 0 .* has 2 and 2"):
        load(path)


def test_the_log_that_counts_is_that_of_the_last_training(planned_dataset: Path) -> None:
    """Not that of a training that it replaced, nor of a later `--val`."""
    path = train_stock(planned_dataset)
    line = "{}: This split has {} training and 2 validation cases. \n"
    older = line.format("2020-01-01 00:00:00.000001", 3) + "2020-01-01 00:00:01.000001: Epoch 0 \n"
    (path.parent / "training_log_2020_1_1_00_00_00.txt").write_text(older)
    (path.parent / "training_log_2999_1_1_00_00_00.txt").write_text(line.format("2999-01-01 00:00:00.000001", 5))
    assert "counts 4 training" in load(path).warnings[0]


def test_a_split_file_newer_than_a_stock_training_is_told(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset)
    later = time.time() + 60
    os.utime(splits_file(experiment_of().preprocessed_folder), (later, later))
    assert "splits_final.json was written after the training" in load(path).warnings[1]


def test_fold_all(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset, fold="all")
    experiment = experiment_of(fold="all")
    (path.parent / "validation").mkdir()
    for case_id in experiment.labelled_ids:
        (path.parent / "validation" / f"{case_id}.nii.gz").touch()
    warning, = load(path, experiment).warnings
    assert "it predicted 6 of 6" in warning


def test_damaged(planned_dataset: Path) -> None:
    path = save_cps(planned_dataset)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint of nnU-Net.*train the teacher again"):
        load(path)


def test_a_trainer_that_is_not_installed_here(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset)
    edit(path, lambda content: content.update(trainer_name="TheirTrainer"))
    teacher = load(path)
    with pytest.raises(UserError, match="trained by TheirTrainer, which nnU-Net does not find here"):
        teacher.label(np.zeros((1, 1, 32, 32), np.float32), np.zeros((1, 32, 32)))


# -- its labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_labels_are_those_of_nnunets_predictor(planned_dataset: Path, configuration: str) -> None:
    path = train_stock(planned_dataset, configuration)
    experiment = experiment_of(configuration)
    image = first_pool_image(experiment)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(path.parents[1]), (0,))
    assert predictor.allowed_mirroring_axes
    expected = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).argmax(0).numpy()
    labels = load(path, experiment).label(image, np.zeros(image.shape[1:]))
    assert np.array_equal(labels, expected) and 0 < labels.mean() < 1
    predictor.use_mirroring = False
    assert not np.array_equal(
        labels, predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).argmax(0).numpy())


def test_threshold_keeps_exactly_the_pixels_it_should(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset)
    image = first_pool_image(experiment_of())
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(path.parents[1]), (0,))
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).float()
    probability = logits.softmax(0)[1].numpy()
    tau = float(np.quantile(probability, 0.8))
    assert abs(tau - 0.5) > 1e-3
    labels = load(path, threshold=tau).label(image, np.zeros(image.shape[1:]))
    assert np.array_equal(labels == 1, probability >= tau)


def test_its_weights_never_move(planned_dataset: Path) -> None:
    path = train_stock(planned_dataset)
    before, stored = path.read_bytes(), torch.load(path, weights_only=False)["network_weights"]
    teacher = load(path)
    image = first_pool_image(experiment_of())
    first = teacher.label(image, np.zeros(image.shape[1:]))
    assert np.array_equal(first, teacher.label(image, np.zeros(image.shape[1:])))
    network = teacher._predictor.network
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training
    assert weights_sha256(network.state_dict()) == weights_sha256(stored)
    assert path.read_bytes() == before


def test_one_that_was_masked_in_training_sees_air_outside_the_layout(planned_dataset: Path) -> None:
    path = save_cps(planned_dataset, mask_outside_layout=True)
    teacher = load(path)
    assert teacher.lowest == [-2.0]
    image = first_pool_image(experiment_of())
    layout = np.zeros(image.shape[1:])
    layout[:, 10:30, 10:30] = 1
    masked = np.where(layout > 0, image, np.float32(-2))
    unmasked = load(save_cps(planned_dataset))
    assert unmasked.lowest is None
    assert np.array_equal(teacher.label(image, layout), unmasked.label(masked, layout))
    assert not np.array_equal(teacher.label(image, layout), unmasked.label(image, layout))


def test_the_key_covers_all_that_decides_a_label(planned_dataset: Path) -> None:
    path = save_cps(planned_dataset)
    key = load(path).key
    edit(path, lambda content: content.update(current_epoch=17))
    assert load(path).key == key, "a student that was stored again is the same teacher"
    seen = {key, load(path, threshold=0.6).key}

    def nudge(content: dict) -> None:
        next(iter(content["network_weights"].values())).view(-1)[0] += 1e-6

    for change in (lambda content: content.update(inference_allowed_mirroring_axes=(0,)), nudge,
                   lambda content: content["nnunet_synth"]["settings"].update(mask_outside_layout=True),
                   lambda content: content["init_args"]["plans"]["configurations"]["2d"].update(patch_size=[64, 64])):
        edit(path, change)
        seen.add(load(path).key)
    assert len(seen) == 6
