"""CS2's clusters of a raw dataset: what is written, and that they arrive where CS2 looks for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_synth.cli import main
from nnunet_synth.commands.layouts import layouts
from nnunet_synth.data import cluster_network
from nnunet_synth.data.cluster_network import ClusterSettings, find_clusters
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.layouts import CLUSTER_FACTOR, layout_file, open_map
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.cs2 import CS2
from nnunet_synth.trainers import SACPSTrainer
from tests.trainers.runs import make_trainer, save_untrained

CASES = [*((f"phantom_tr_{number:03d}", "Tr") for number in range(6)),
         *((f"phantom_ul_{number:03d}", "Ul") for number in range(3))]


@pytest.fixture
def raw(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without the network's training, which would take a minute: its first answer, refined."""
    monkeypatch.setattr(cluster_network, "_agree", lambda network, image, superpixels, settings: cluster_network.refine(
        cluster_network.resized(network(image).argmax(1), *superpixels.shape)[0].long(), superpixels, 32))
    folder, = (planned_dataset / "nnUNet_raw").iterdir()
    return folder


def read(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def test_every_slice_of_every_case_has_clusters_and_cs2_trains_on_them(raw: Path, planned_dataset: Path,
                                                                      capsys: pytest.CaptureFixture) -> None:
    assert main(["layouts", "701", "--method", "cs2"]) == 0
    assert "clusters written" in capsys.readouterr().out
    experiment = load_experiment(701, "2d", 0)
    preprocess_pool(experiment)
    for case, part in CASES:
        clusters = read(raw / f"clusters{part}" / f"{case}.nii.gz")
        hu = read(raw / f"images{part}" / f"{case}_0000.nii.gz")
        gray = torch.from_numpy(np.clip((hu.astype(np.float32) + 1500) / 1600, 0, 1))      # UM2I's window
        for number, found in enumerate(clusters):
            np.testing.assert_array_equal(found, find_clusters(gray[number][None]).numpy())
        stored = open_map(layout_file(experiment, case))[:]
        np.testing.assert_array_equal(stored // CLUSTER_FACTOR, clusters)
        assert (stored % CLUSTER_FACTOR).any()              # and the lungs are still there

    declared = json.loads((raw / "dataset.json").read_text())["nnunet_synth"]["clusters"]
    assert declared["method"] == "cs2" and declared["max_clusters"] == 4 and declared["superpixels"] == "felzenszwalb"
    assert next(FoldSlices(experiment).iterate(False)).cluster.min() >= 1

    save_untrained(CS2, mask="cnn")
    trainer = make_trainer(SACPSTrainer, planned_dataset, synthesizer="cs2", seed=0, num_epochs=1)
    trainer.run_training()
    entry = trainer.epoch_log.read()[-1]
    assert entry["synthetic_used"] == 1 and entry["loss_synthetic"] != 0


def test_options_of_other_methods_are_refused(raw: Path) -> None:
    with pytest.raises(UserError, match="--method superpixel"):
        layouts(701, "cs2", step=20)
    with pytest.raises(UserError, match="lungmask"):
        layouts(701, "cs2", batch_size=3)
    with pytest.raises(UserError, match="--images"):
        layouts(701, "cs2", images=raw / "imagesTr", masked=raw / "masked")
    assert not (raw / "clustersTr").exists()


def test_clusters_made_otherwise_are_not_mixed_with_these(raw: Path) -> None:
    layouts(701, "superpixel", into="cluster")
    with pytest.raises(UserError, match="made otherwise .*superpixel.*--overwrite"):
        layouts(701, "cs2")


def test_settings_that_the_network_is_made_with() -> None:
    assert ClusterSettings() == ClusterSettings(num_classes=32, max_clusters=4, max_iterations=60)
