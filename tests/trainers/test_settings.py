"""Kinds of datasets and settings: regions, ignore label, no deep supervision, fold all, lung-only input, the paper."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention
import torch

from nnunet_synth.config import PRESETS
from nnunet_synth.data.loaders import split_channels
from nnunet_synth.errors import UserError
from nnunet_synth.trainers import CPSTrainer, SACPSTrainer
from nnunet_synth.trainers.semi_supervised import sigmoid_ramp_up
from tests.conftest import preprocess_in_this_process
from tests.trainers.runs import make_trainer, save_untrained_sean

# Regions in nnU-Net's sense: one that unites several labels; (labels, regions_class_order, value of ignored voxels).
REGIONS = ({"background": 0, "affected": [1, 2], "consolidation": 2}, [1, 2], None)
WITH_REGIONS_OR_IGNORE = pytest.mark.parametrize(("labels", "order", "ignore"), [
    REGIONS,
    ({"background": 0, "infection": 1, "ignore": 2}, None, 2),
    ({**REGIONS[0], "ignore": 3}, REGIONS[1], 3),
], ids=["regions", "ignore", "regions and ignore"])


def relabel(root: Path, labels: dict, regions_class_order: list[int] | None, ignore: int | None) -> None:
    """Another meaning of the labels of the tiny dataset: with regions, a half of each infection is consolidation; with
    an ignore label, there is a strip of ignored voxels."""
    raw, = (root / "nnUNet_raw").iterdir()
    preprocessed, = (root / "nnUNet_preprocessed").iterdir()
    for folder in (raw, preprocessed):
        dataset_json = json.loads((folder / "dataset.json").read_text())
        dataset_json["labels"] = labels
        if regions_class_order:
            dataset_json["regions_class_order"] = regions_class_order
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for path in (raw / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        if regions_class_order:
            rows = np.nonzero(array)[1]
            array[:, int(np.median(rows)):] *= 2
        if ignore is not None:
            array[:, :8] = ignore
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(path))
    for name in ("nnUNetPlans_2d", "nnUNetPlans_3d_fullres", "gt_segmentations"):
        shutil.rmtree(preprocessed / name)
    preprocess_in_this_process(root, preprocessed / "nnUNetPlans.json")


@WITH_REGIONS_OR_IGNORE
def test_regions_and_ignore_label(planned_dataset: Path, labels: dict, order: list | None, ignore: int | None) -> None:
    relabel(planned_dataset, labels, order, ignore)
    save_untrained_sean()
    trainer = make_trainer(SACPSTrainer, planned_dataset, seed=0)
    trainer.run_training()
    entry = trainer.epoch_log.read()[-1]
    assert trainer.label_manager.has_regions == (order is not None)
    assert math.isfinite(entry["loss"]) and entry["synthetic_used"] == 1
    drawn = trainer.synthesis.synthesizer.meta.semantic
    assert len(drawn.names) == (4 if order is None else 5), "an ignored pixel is no class to draw"


def test_without_deep_supervision(planned_dataset: Path) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, enable_deep_supervision=False)
    trainer.run_training()
    assert not trainer.peer.decoder.deep_supervision
    assert math.isfinite(trainer.epoch_log.read()[-1]["loss"])


def test_fold_all_has_no_validation_to_leak_to(planned_dataset: Path) -> None:
    save_untrained_sean(fold="all")
    trainer = make_trainer(SACPSTrainer, planned_dataset, fold="all")
    trainer.run_training()
    assert trainer.experiment.unlabelled_ids == [] and len(trainer.experiment.train_ids) == 6


def test_lung_only_input(planned_dataset: Path) -> None:
    """Whatever a network sees, synthetic images included, is air outside the layout; the rest is untouched."""
    save_untrained_sean()
    trainer = make_trainer(SACPSTrainer, planned_dataset, mask_outside_layout=True, seed=0)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    image_u, layout_u, _, _ = split_channels(batch["data_u"])
    x_l, _, unlabelled = trainer.to_device(batch)
    intensities = trainer.plans_manager.foreground_intensity_properties_per_channel["0"]
    air = (intensities["percentile_00_5"] - intensities["mean"]) / intensities["std"]
    assert (layout_u > 0).any() and (layout_u == 0).any()
    assert torch.allclose(unlabelled.image[:, 0][layout_u == 0], torch.tensor(air, dtype=torch.float32))
    assert torch.equal(unlabelled.image[:, 0][layout_u > 0], image_u[:, 0][layout_u > 0])
    layout_l = split_channels(batch["data"])[1]
    assert torch.allclose(x_l[:, 0][layout_l == 0], torch.tensor(air, dtype=torch.float32))
    drawn = trainer.synthesizer_for(unlabelled)(torch.zeros(4, 32, 32, dtype=torch.int64))
    assert torch.allclose(drawn.image[:, 0][layout_u.repeat(2, 1, 1) == 0], torch.tensor(air, dtype=torch.float32))

    with trainer._masked_cases():
        case = trainer.experiment.val_ids[0]
        masked = trainer.dataset_class(str(trainer.experiment.data_folder), [case]).load_case(case)[0]
    layout = blosc2.open(str(trainer.experiment.layouts_folder / f"{case}.b2nd"))[:]
    assert np.allclose(masked[0][layout == 0], air) and not np.allclose(masked[0][layout > 0], air)


def test_lung_only_input_needs_layouts(planned_dataset: Path) -> None:
    for path in (planned_dataset / "nnUNet_raw").glob("*/layoutsUl/phantom_ul_001*"):
        path.unlink()
    with pytest.raises(UserError, match="the layout of every case; 1 have none.*phantom_ul_001"):
        make_trainer(CPSTrainer, planned_dataset, mask_outside_layout=True).run_training()


def test_epochs_over_the_unlabelled_stream(planned_dataset: Path) -> None:
    """--preset paper: an epoch is one pass over the unlabelled slices with lung (3 cases of 4 slices, 2 a step)."""
    settings = {**PRESETS["paper"], "epochs_over_unlabelled": 2, "synthetic_weight": 0.0}
    trainer = make_trainer(SACPSTrainer, planned_dataset, num_epochs=None, **settings)
    trainer.run_training()
    slices = trainer.unlabelled_cases().num_slices()
    assert trainer.num_epochs == 2 and trainer.num_iterations_per_epoch == math.ceil(slices / 2)
    assert trainer.optimizer.defaults["momentum"] == trainer.peer_optimizer.defaults["momentum"] == 0.9
    assert trainer.lr_scheduler.max_steps == 2


def test_batch_sizes(planned_dataset: Path) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, batch_size=3, unlabelled_batch_size=5)
    trainer.initialize()
    trainer.prepare_unlabelled()
    batch = next(trainer.get_dataloaders()[0])
    assert len(batch["data"]) == 3 and len(batch["data_u"]) == 5


def test_threshold_is_refused_for_several_exclusive_classes(planned_dataset: Path) -> None:
    relabel(planned_dataset, {"background": 0, "infection": 1, "other": 2}, None, None)
    with pytest.raises(UserError, match="confidence_threshold"):
        make_trainer(CPSTrainer, planned_dataset, confidence_threshold=0.7).initialize()


def test_ramp_up() -> None:
    assert sigmoid_ramp_up(0, 0) == 1 and sigmoid_ramp_up(10, 10) == 1 and sigmoid_ramp_up(99, 10) == 1
    assert sigmoid_ramp_up(0, 10) == pytest.approx(math.exp(-5))
    assert sigmoid_ramp_up(5, 10) == pytest.approx(math.exp(-5 * 0.25))
