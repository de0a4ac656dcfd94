"""Two streams: what is drawn, what travels with it, and what must never be seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.loaders import UnlabelledCases, split_channels, with_layout_channels
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.trainers import CPSTrainer
from tests.trainers.runs import make_trainer


@pytest.fixture
def hidden_split(planned_dataset: Path) -> dict:
    """Fold 0 of the default split, with two of its four training cases unlabelled."""
    from nnunet_synth.data.splits import default_splits, splits_file
    preprocessed, = (planned_dataset / "nnUNet_preprocessed").iterdir()
    splits = default_splits([f"phantom_tr_{number:03d}" for number in range(6)])
    train = splits[0]["train"]
    splits.append({"name": "half", "train": train[:2], "unlabelled": train[2:], "val": splits[0]["val"]})
    splits_file(preprocessed).write_text(json.dumps(splits))
    return splits[-1]


def loaders_of(trainer: CPSTrainer):
    trainer.initialize()
    trainer.prepare_unlabelled()
    return trainer.get_dataloaders()


def test_streams_hold_the_cases_of_the_split(planned_dataset: Path, hidden_split: dict) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, fold=5, seed=0)
    train, validation = loaders_of(trainer)
    seen, seen_u, seen_val = set(), set(), set()
    for _ in range(40):
        batch = next(train)
        assert len(batch["data"]) == len(batch["data_u"]) == 2
        seen.update(batch["keys"]), seen_u.update(batch["keys_u"]), seen_val.update(next(validation)["keys"])
    assert seen == set(hidden_split["train"])
    assert seen_u == {*hidden_split["unlabelled"], *trainer.experiment.pool_ids}
    assert seen_val == set(hidden_split["val"])


def test_labels_of_unlabelled_cases_are_hidden(planned_dataset: Path, hidden_split: dict) -> None:
    trainer = make_trainer(CPSTrainer, planned_dataset, fold=5)
    trainer.initialize()
    trainer.prepare_unlabelled()
    cases = trainer.unlabelled_cases()
    for case in hidden_split["unlabelled"]:
        _, segmentation, _, properties = cases.load_case(case)
        labelled = cases.source_of[case].dataset.load_case(case)
        assert labelled[1][:].max() == 1, "the case must have a lesion, or nothing is hidden here"
        assert set(np.unique(segmentation[:])) <= {-1, 0}
        layout = cases.load_case(case)[2][:]
        rows = properties["class_locations"][1]
        assert list(properties["class_locations"]) == [1] and np.all(layout[tuple(rows[:, 1:].T)] > 0)


def test_unlabelled_slices_hold_layout(planned_dataset: Path) -> None:
    """Where only one slice of a case has layout, only that slice is drawn; with pool_slices=all, any."""
    import SimpleITK as sitk  # noqa: N813
    for path in (planned_dataset / "nnUNet_raw").glob("*/layoutsUl/*"):
        image = sitk.ReadImage(str(path))
        layout = sitk.GetArrayFromImage(image)
        layout[[0, 1, 3]] = 0
        sitk.WriteImage(sitk.GetImageFromArray(layout), str(path))
    for pool_slices, share in (("layout", 1.0), ("all", 0.5)):
        trainer = make_trainer(CPSTrainer, planned_dataset, seed=0, pool_slices=pool_slices, batch_size=8)
        train, _ = loaders_of(trainer)
        with_layout = [bool((split_channels(next(train)["data_u"])[1][sample] > 0).any())
                       for _ in range(6) for sample in range(8)]
        assert np.mean(with_layout) == 1.0 if share == 1.0 else np.mean(with_layout) < share
        assert trainer.unlabelled_cases().num_slices() == (3 if share == 1.0 else 12)


def test_extra_channels_follow_the_image() -> None:
    """An image made of the layout and an equal segmentation must agree with both after rotation, scaling, mirroring."""
    torch.manual_seed(0)
    np.random.seed(0)
    layout = torch.zeros(1, 64, 64, dtype=torch.int16)
    layout[:, 10:40, 8:30], layout[:, 20:56, 34:60] = 1, 2
    transforms = with_layout_channels(ComposeTransforms([
        SpatialTransform((64, 64), patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0,
                         p_rotation=1, rotation=(-0.5, 0.5), p_scaling=1, scaling=(0.7, 1.4),
                         bg_style_seg_sampling=False, border_mode_seg="constant", padding_value_seg=-1),
        MirrorTransform((0, 1)), RemoveLabelTransform(-1, 0)]))
    moved = 0
    for _ in range(10):
        result = transforms(image=layout.float(), segmentation=torch.cat([layout, layout + 256 * 3]).clone())
        image, layout_out, cluster, valid = split_channels(result["image"][None])
        target = result["segmentation"]
        assert target.shape == (1, 64, 64)
        assert torch.equal(layout_out[0][valid[0]], target[0].long()[valid[0]])
        assert float((image[0, 0].round().long() == layout_out[0]).float().mean()) > 0.93    # interpolated edges
        assert torch.equal(cluster[0], 3 * valid[0].long())
        assert not layout_out[0][~valid[0]].any()
        moved += int(not torch.equal(layout_out[0], layout[0].long()))
    assert moved == 10


def test_padding_is_not_valid(planned_dataset: Path, edit_plans) -> None:
    plans_file, = (planned_dataset / "nnUNet_preprocessed").glob("*/nnUNetPlans.json")
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["2d"]["patch_size"] = [64, 64]          # images are 48 × 48
    plans_file.write_text(json.dumps(plans))
    trainer = make_trainer(CPSTrainer, planned_dataset, seed=0)
    _, validation = loaders_of(trainer)
    batch = next(validation)
    image, layout, _, valid = split_channels(batch["data"])
    assert valid.sum((1, 2)).tolist() == [48 * 48] * 2
    assert not image[:, 0][~valid].any() and not layout[~valid].any() and not batch["target"][0][:, 0][~valid].any()


def test_same_seed_same_batches(planned_dataset: Path) -> None:
    def first_batch(seed: int) -> dict:
        trainer = make_trainer(CPSTrainer, planned_dataset, seed=seed)
        return next(loaders_of(trainer)[0])

    one, same, other = first_batch(1), first_batch(1), first_batch(2)
    assert torch.equal(one["data"], same["data"]) and torch.equal(one["data_u"], same["data_u"])
    assert not torch.equal(one["data_u"], other["data_u"])


@pytest.mark.slow
def test_workers_see_different_random_numbers(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without seeds forked workers share one stream of torch's random numbers (nnunet.md §4)."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer(CPSTrainer, planned_dataset, seed=1)
    train, validation = loaders_of(trainer)
    try:
        assert len(train._processes) == 2
        batches = [next(train)["data"] for _ in range(6)]
    finally:
        train._finish(), validation._finish()
    assert len({batch.numpy().tobytes() for batch in batches}) == 6


def test_a_case_without_layout_is_drawn_uniformly(planned_dataset: Path) -> None:
    for path in (planned_dataset / "nnUNet_raw").glob("*/layouts*/*"):
        path.unlink()
    experiment = load_experiment(701, "2d", 0)
    preprocess_pool(experiment)
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    source = nnUNetDatasetBlosc2(str(experiment.pool_folder), experiment.pool_ids)
    cases = UnlabelledCases([source], experiment.layouts_folder, inside_layout=True)
    _, _, layout, properties = cases.load_case(experiment.pool_ids[0])
    assert properties["class_locations"] == {} and not np.any(layout[:])
    assert cases.num_slices() == 12


@pytest.mark.parametrize("depth", [(), (2,)])
def test_zeros_amid_the_image_are_valid(depth: tuple) -> None:
    """nnU-Net marks raw zeros inside a single picture as outside; only what is connected to the border is."""
    segmentation = torch.zeros(2, *depth, 12, 12, dtype=torch.int16)
    segmentation[0, ..., :3] = -1           # padding
    segmentation[0, ..., 6, 7] = -1         # a black pixel
    transform = with_layout_channels(ComposeTransforms([RemoveLabelTransform(-1, 0)]))
    result = transform(image=torch.zeros(1, *depth, 12, 12), segmentation=segmentation)
    _, _, _, valid = split_channels(result["image"][None])
    assert not valid[..., :3].any() and valid[..., 3:].all()
