"""Pseudo-labels on disk: in the grid of their case, each whole or not there, done again when the case is; and what the
loader makes of them."""

from __future__ import annotations

import os
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from nnunet_synth.data.experiment import Experiment, load_experiment
from nnunet_synth.data.layouts import open_map
from nnunet_synth.data.loaders import HiddenSegmentation, UnlabelledCases, split_channels
from nnunet_synth.data.pseudo_labels import make_pseudo_labels, pseudo_labels_folder
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.trainers import CPSTrainer
from tests.trainers.runs import make_trainer

PATCH = (32, 32)


class Labeller:
    """Labels each voxel by its layout, and remembers how often it was asked."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls = 0
        self.fail_at = fail_at

    def __call__(self, image: np.ndarray, layout: np.ndarray) -> np.ndarray:
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        assert image.dtype == np.float32 and image.shape[1:] == layout.shape
        return layout.astype(np.int64)


@pytest.fixture
def stream(planned_dataset: Path) -> tuple[Experiment, UnlabelledCases]:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    experiment = load_experiment(701, "2d", 0)
    preprocess_pool(experiment)
    source = nnUNetDatasetBlosc2(str(experiment.pool_folder), experiment.pool_ids)
    return experiment, UnlabelledCases([source], experiment.layouts_folder, inside_layout=True)


def test_where_they_lie(stream: tuple) -> None:
    experiment, _ = stream
    folder = pseudo_labels_folder(experiment, "0123")
    assert folder == experiment.preprocessed_folder / "nnUNetPlans_2d_pseudo" / "0123"


def test_in_the_grid_of_the_case_and_minus_one_outside(stream: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cases = stream
    folder = pseudo_labels_folder(experiment, "key")
    hidden = HiddenSegmentation.__getitem__

    def with_margin_and_hole(self: HiddenSegmentation, key: object) -> np.ndarray:
        segmentation = hidden(self, key).copy()
        segmentation[..., :5] = -1              # beyond the scan
        segmentation[..., 20, 20] = -1          # a black pixel amid it
        return segmentation

    monkeypatch.setattr(HiddenSegmentation, "__getitem__", with_margin_and_hole)
    make_pseudo_labels(cases, cases.identifiers, folder, PATCH, lambda image, layout: np.full(layout.shape, 1))
    for case_id in cases.identifiers:
        stored = open_map(folder / f"{case_id}.b2nd")[:]
        assert stored.dtype == np.int16 and stored.shape == (1, *cases.load_case(case_id)[0].shape[1:])
        assert np.all(stored[..., :5] == -1) and np.all(stored[..., 5:] == 1)


def test_interrupted_it_goes_on(stream: tuple) -> None:
    experiment, cases = stream
    folder = pseudo_labels_folder(experiment, "key")
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labels(cases, cases.identifiers, folder, PATCH, Labeller(fail_at=2))
    done = sorted(path.name for path in folder.glob("*.b2nd"))
    assert done == [f"{case_id}.b2nd" for case_id in cases.identifiers[:2]]
    again = Labeller()
    make_pseudo_labels(cases, cases.identifiers, folder, PATCH, again)
    assert again.calls == 1 and len(list(folder.glob("*.b2nd"))) == 3
    make_pseudo_labels(cases, cases.identifiers, folder, PATCH, again)
    assert again.calls == 1


def test_a_write_that_fails_leaves_nothing(stream: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, cases = stream
    folder = pseudo_labels_folder(experiment, "key")
    whole = blosc2.asarray

    def killed(array: np.ndarray, urlpath: str, **options: object) -> None:
        whole(array, urlpath=urlpath, **options)
        Path(urlpath).write_bytes(Path(urlpath).read_bytes()[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr("blosc2.asarray", killed)
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labels(cases, cases.identifiers, folder, PATCH, Labeller())
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("sees_layout", "expected"), [(False, 1), (True, 2)])
def test_a_case_that_was_preprocessed_again_is_labelled_again(stream: tuple, sees_layout: bool, expected: int) -> None:
    """Also where what is there now is older than the label, and not where only its time has changed."""
    experiment, cases = stream
    folder = pseudo_labels_folder(experiment, "key")
    make_pseudo_labels(cases, cases.identifiers, folder, PATCH, Labeller(), sees_layout)
    touched, changed = (cases.stored_files(case_id)[0] for case_id in cases.identifiers[:2])
    for path in (changed, experiment.layouts_folder / f"{cases.identifiers[2]}.b2nd"):
        blosc2.open(urlpath=str(path), mode="a")[..., :3] = 1
        os.utime(path, (1e9, 1e9))
    os.utime(touched)
    again = Labeller()
    make_pseudo_labels(cases, cases.identifiers, folder, PATCH, again, sees_layout)
    assert again.calls == expected, "whoever looks at the layout must look again when it changes"


class LayoutTrainer(CPSTrainer):
    """Its unlabelled stream carries the layout as pseudo-label."""

    def pseudo_labels_folder(self) -> Path:
        return pseudo_labels_folder(self.experiment, "layout")


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_they_are_augmented_with_the_image(planned_dataset: Path, configuration: str) -> None:
    """The layout as pseudo-label must come out of rotation, scaling and mirroring as the layout channel does."""
    trainer = make_trainer(LayoutTrainer, planned_dataset, configuration, seed=0, batch_size=8)
    trainer.initialize()
    trainer.prepare_unlabelled()
    cases = trainer.unlabelled_cases(with_pseudo_labels=False)
    make_pseudo_labels(cases, cases.identifiers, trainer.pseudo_labels_folder(),
                       trainer.configuration_manager.patch_size, Labeller())
    train, _ = trainer.get_dataloaders()
    for _ in range(4):
        batch = next(train)
        layout, target = split_channels(batch["data_u"])[1], batch["target_u"]
        assert target.shape == (8, 1, *layout.shape[1:]) and target.dtype == torch.int16
        assert torch.equal(target[:, 0].long(), layout) and set(layout.unique().tolist()) == {0, 1, 2}


def test_without_pseudo_labels_no_label_travels(planned_dataset: Path) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, seed=0)
    trainer.initialize()
    trainer.prepare_unlabelled()
    assert "target_u" not in next(trainer.get_dataloaders()[0])
