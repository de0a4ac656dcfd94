"""Whole label volumes as they were preprocessed, and the distance of their slices."""

import json

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.label_volumes import read_label_volumes
from nnunet_synth.data.slices import FoldSlices
from tests.conftest import DATASET_ID


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_every_slice_is_there_in_order(planned_dataset, configuration):
    experiment = load_experiment(DATASET_ID, configuration, 0)
    slices = FoldSlices(experiment)
    volumes = list(read_label_volumes(experiment, experiment.train_ids[:2]))
    assert [volume.case_id for volume in volumes] == experiment.train_ids[:2]
    for volume in volumes:
        image, segmentation, _ = slices.cases.open(volume.case_id)
        assert np.array_equal(volume.image[0].numpy(), image[:])
        assert np.array_equal(volume.label[0].numpy(), np.maximum(segmentation[0], 0))
        assert volume.valid.shape == volume.layout.shape == volume.cluster.shape == volume.label.shape
        for number in range(volume.label.shape[1]):
            assert np.array_equal(volume.layout[0, number].numpy(), slices.cases.read((volume.case_id, number)).layout)


def test_slices_are_as_far_apart_as_they_were_scanned(planned_dataset):
    experiment = load_experiment(DATASET_ID, "2d", 0)
    ending = json.loads((experiment.raw_folder / "dataset.json").read_text())["file_ending"]
    for volume in read_label_volumes(experiment, experiment.train_ids[:1]):
        raw = SimpleITK.ReadImage(str(experiment.raw_folder / "imagesTr" / f"{volume.case_id}_0000{ending}"))
        assert volume.slice_spacing == pytest.approx(raw.GetSpacing()[2])


def test_scans_can_be_kept_out_of_sight(planned_dataset):
    experiment = load_experiment(DATASET_ID, "2d", 0)
    volume = next(read_label_volumes(experiment, experiment.labelled_ids, with_scans=False))
    assert volume.image is None
