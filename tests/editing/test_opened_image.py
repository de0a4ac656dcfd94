"""There and back: raw image → the network's slices → raw image."""

import json

import numpy as np
import pytest

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.raw_images import list_cases
from nnunet_synth.editing.opened_image import Intensities, OpenedImage
from nnunet_synth.errors import UserError
from tests.conftest import DATASET_ID


def change_plans(root, change):
    file, = (root / "nnUNet_preprocessed").glob("*/nnUNetPlans.json")
    plans = json.loads(file.read_text())
    change(plans)
    file.write_text(json.dumps(plans))


def opened(configuration="2d", regions=None):
    experiment = load_experiment(DATASET_ID, configuration, 0)
    files = list_cases(experiment.raw_folder / "imagesTr", ".nii.gz")[experiment.val_ids[0]]
    return OpenedImage.open(experiment, files, regions)


def test_intensities_are_nnunets_own(planned_dataset):
    image = opened()
    facts = image.experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    assert image.intensities.to_network(-600.0) == pytest.approx((-600 - facts["mean"]) / facts["std"], abs=1e-4)
    np.testing.assert_allclose(image.intensities.to_raw(np.array([0.0, 1.0])), [facts["mean"],
                                                                               facts["mean"] + facts["std"]], atol=1e-2)


def test_a_z_score_is_taken_back_with_the_images_own_mean(planned_dataset):
    change_plans(planned_dataset, lambda plans: plans["configurations"]["2d"].update(
        normalization_schemes=["ZScoreNormalization"]))
    image = opened()
    assert image.intensities.to_raw(np.zeros(1))[0] == pytest.approx(image.raw.mean(), abs=0.1)
    assert 1 / image.intensities.factor == pytest.approx(image.raw.std(), rel=1e-3)


def test_a_line_leaves_clipped_voxels_out():
    raw = np.linspace(-1000, 1000, 50)
    line = Intensities.between(raw, np.clip((raw + 100) / 200, -1, 2))
    assert (line.factor, line.offset) == (pytest.approx(1 / 200), pytest.approx(0.5))
    with pytest.raises(UserError, match="same intensity everywhere"):
        Intensities.between(np.ones(9), np.zeros(9))


@pytest.mark.parametrize("forward", [[0, 1, 2], [2, 0, 1]])
def test_slices_that_were_not_changed_come_back_as_they_were(planned_dataset, forward):
    """Also where the plans turn the axes; only the given slice is touched."""
    change_plans(planned_dataset, lambda plans: plans.update(
        transpose_forward=forward, transpose_backward=np.argsort(forward).tolist()))
    image = opened()
    number, axis = 1, forward[0]
    back = image.replace_slices({number: image.network[number]})
    assert back.shape == image.raw.shape
    moved_back, moved_raw = np.moveaxis(back, axis, 0), np.moveaxis(image.raw, axis, 0)
    others = [z for z in range(len(moved_raw)) if z != number]
    assert np.array_equal(moved_back[others], moved_raw[others])
    facts = image.experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    clipped = np.clip(moved_raw[number], facts["percentile_00_5"], facts["percentile_99_5"])
    if forward == [0, 1, 2]:        # nothing is resampled
        np.testing.assert_allclose(moved_back[number], clipped, atol=0.05)
    darker = np.moveaxis(image.replace_slices({number: image.network[number] - 1}), axis, 0)
    np.testing.assert_allclose((moved_back - darker)[number], facts["std"], rtol=1e-3)
    assert np.array_equal(darker[others], moved_raw[others])


def test_regions_and_labels_travel_there_and_back(planned_dataset):
    experiment = load_experiment(DATASET_ID, "2d", 0)
    files = list_cases(experiment.raw_folder / "imagesTr", ".nii.gz")[experiment.val_ids[0]]
    regions = np.zeros(OpenedImage.open(experiment, files).raw.shape, np.int16)
    regions[2, 10:20, 30:40] = 2
    image = OpenedImage.open(experiment, files, regions)
    assert np.unique(image.regions[2]).tolist() == [0, 2] and (image.regions[[0, 1, 3]] <= 0).all()
    before = np.full(image.raw.shape, 7, np.uint8)
    after = image.replace_labels(before, {2: (image.regions[2] == 2).astype(np.int64)})
    assert after.dtype == np.uint8 and np.array_equal(after[2], regions[2] == 2) and (after[[0, 1, 3]] == 7).all()


def test_resampled_in_plane(planned_dataset):
    """A plan of twice the pixel size: shapes fit, and a smooth slice survives."""
    def coarser(plans):
        configuration = plans["configurations"]["2d"]
        configuration["spacing"] = [2 * step for step in configuration["spacing"]]

    change_plans(planned_dataset, coarser)
    image = opened()
    assert image.network.shape[1:] == (24, 24)
    plain = image.replace_slices({0: np.full((24, 24), image.intensities.to_network(-300.0), np.float32)})
    np.testing.assert_allclose(plain[0], -300, atol=0.5)
    assert np.array_equal(plain[1:], image.raw[1:])


def test_what_cannot_be_opened(planned_dataset):
    def thicker(plans):
        plans["configurations"]["3d_fullres"]["spacing"][0] *= 2

    change_plans(planned_dataset, thicker)
    with pytest.raises(UserError, match="changes the distance between slices"):
        opened("3d_fullres")
    experiment = load_experiment(DATASET_ID, "2d", 0)
    files = list_cases(experiment.raw_folder / "imagesTr", ".nii.gz")[experiment.val_ids[0]]
    with pytest.raises(UserError, match="needs a dataset with one"):
        OpenedImage.open(experiment, files * 2)
