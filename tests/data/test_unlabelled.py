"""The pool and the layouts: nnU-Net's own preprocessing, what is redone and what is kept, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention

from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.layouts import layout_file, locations_file
from nnunet_synth.data.unlabelled import PoolPlan, preprocess_pool
from nnunet_synth.errors import UserError


@pytest.fixture
def raw(planned_dataset: Path) -> Path:
    folder, = (planned_dataset / "nnUNet_raw").iterdir()
    return folder


def rewrite(path: Path, change) -> None:
    """Replace a NIfTI's array by change(array), keeping its geometry where the shape allows."""
    image = sitk.ReadImage(str(path))
    new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    new.SetSpacing(image.GetSpacing())
    sitk.WriteImage(new, str(path))


def test_pool_is_what_nnunet_would_make(planned_dataset: Path, raw: Path) -> None:
    experiment = load_experiment(701, "2d")
    plan = preprocess_pool(experiment)
    assert plan.missing_cases == experiment.pool_ids and len(experiment.pool_ids) == 3
    case = experiment.pool_ids[0]
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    data, outside, _, properties = nnUNetDatasetBlosc2(str(experiment.pool_folder), [case]).load_case(case)
    expected, expected_outside, _ = experiment.configuration_manager.preprocessor_class(verbose=False).run_case(
        [str(raw / "imagesUl" / f"{case}_0000.nii.gz")], None, experiment.plans_manager,
        experiment.configuration_manager, experiment.dataset_json)
    assert np.array_equal(data[:], expected.astype(np.float32)) and np.array_equal(outside[:], expected_outside)
    assert properties["class_locations"] == {}
    # Nothing of ours in nnU-Net's folder: its cases would end up in splits.
    assert {path.name.split(".")[0].removesuffix("_seg") for path in experiment.data_folder.iterdir()} \
        == {f"phantom_tr_{number:03d}" for number in range(6)}


def test_layout_lies_on_its_image(planned_dataset: Path, raw: Path) -> None:
    """A layout that is the image, thresholded, must still be that after nnU-Net transposed, cropped and resampled."""
    for case in (f"phantom_tr_{number:03d}" for number in range(6)):
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / f"{case}_0000.nii.gz")))
        rewrite(raw / "layoutsTr" / f"{case}.nii.gz", lambda _, image=image: (image > -200) * np.uint8(2))
    experiment = load_experiment(701, "3d_fullres")
    preprocess_pool(experiment)
    intensities = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    threshold = (max(-200, intensities["percentile_00_5"]) - intensities["mean"]) / intensities["std"]
    for case in experiment.labelled_ids:
        image = blosc2.open(str(experiment.data_folder / f"{case}.b2nd"))[:][0]
        layout = blosc2.open(str(layout_file(experiment, case)))[:]
        assert set(np.unique(layout)) == {0, 2}
        assert np.mean((layout == 2) == (image > threshold)) == 1.0     # spacing is that of the plan: no resampling
        rows = np.load(locations_file(experiment, case), allow_pickle=False)
        assert rows.shape[1] == 4 and np.all(layout[tuple(rows[:, 1:].T)] == 2)


def test_only_what_changed_is_done_again(planned_dataset: Path, raw: Path) -> None:
    experiment = load_experiment(701, "2d")
    preprocess_pool(experiment)
    assert PoolPlan(load_experiment(701, "2d")).is_complete
    assert preprocess_pool(load_experiment(701, "2d")).missing_cases == []

    changed = raw / "imagesUl" / "phantom_ul_001_0000.nii.gz"
    rewrite(changed, lambda image: image + np.int16(1))
    os.utime(changed, ns=(os.stat(changed).st_atime_ns, os.stat(changed).st_mtime_ns + 10 ** 9))
    assert preprocess_pool(load_experiment(701, "2d")).missing_cases == ["phantom_ul_001"]

    (raw / "imagesUl" / "phantom_ul_002_0000.nii.gz").unlink()
    preprocess_pool(load_experiment(701, "2d"))
    assert sorted(path.stem for path in experiment.pool_folder.glob("*.pkl")) == ["phantom_ul_000", "phantom_ul_001"]
    assert not layout_file(experiment, "phantom_ul_002").exists()


def test_a_pool_of_other_plans_is_stale(planned_dataset: Path) -> None:
    preprocess_pool(load_experiment(701, "2d"))
    plans_file, = (planned_dataset / "nnUNet_preprocessed").glob("*/nnUNetPlans.json")
    plans = json.loads(plans_file.read_text())
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 100
    plans_file.write_text(json.dumps(plans))
    assert PoolPlan(load_experiment(701, "2d")).is_stale
    assert len(preprocess_pool(load_experiment(701, "2d")).missing_cases) == 3
    plans["configurations"]["2d"]["batch_size"] = 7         # decides nothing about a preprocessed case
    plans_file.write_text(json.dumps(plans))
    assert PoolPlan(load_experiment(701, "2d")).is_complete


def test_an_interrupted_run_goes_on(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    save, saved = nnUNetDatasetBlosc2.save_case, []

    def full_disk(*args: object, **kwargs: object) -> None:
        if saved:
            raise OSError(28, "No space left on device")
        saved.append(save(*args, **kwargs))

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", staticmethod(full_disk))
    experiment = load_experiment(701, "2d")
    with pytest.raises(OSError):
        preprocess_pool(experiment)
    monkeypatch.undo()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(planned_dataset / name))
    assert len(list(experiment.pool_folder.glob("*.pkl"))) == 1
    assert not list(experiment.pool_folder.parent.glob(".*"))
    assert preprocess_pool(load_experiment(701, "2d")).missing_cases == ["phantom_ul_001", "phantom_ul_002"]


def test_in_several_processes(planned_dataset: Path) -> None:
    preprocess_pool(load_experiment(701, "2d"), num_processes=2)
    assert PoolPlan(load_experiment(701, "2d")).is_complete


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [("imagesTr/phantom_tr_000", "imagesUl/phantom_tr_000"),
                                                ("imagesTs/phantom_ts_000", "imagesUl/phantom_ts_000")])
def test_a_case_in_two_places(raw: Path, source: str, target: str) -> None:
    (raw / f"{target}_0000.nii.gz").write_bytes((raw / f"{source}_0000.nii.gz").read_bytes())
    with pytest.raises(UserError, match=r"of imagesUl are also (labelled|test)"):
        preprocess_pool(load_experiment(701, "2d"))


def test_wrong_number_of_channels(raw: Path) -> None:
    image = raw / "imagesUl" / "phantom_ul_000_0000.nii.gz"
    image.with_name("phantom_ul_000_0001.nii.gz").write_bytes(image.read_bytes())
    with pytest.raises(UserError, match="1 channel"):
        preprocess_pool(load_experiment(701, "2d"))


def test_implausible_spacing(raw: Path) -> None:
    path = raw / "imagesUl" / "phantom_ul_000_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetSpacing([0.001, 0.001, 0.005])         # metres
    sitk.WriteImage(image, str(path))
    with pytest.raises(UserError, match=r"are its numbers metres instead of millimetres\?"):
        preprocess_pool(load_experiment(701, "2d"))
    image.SetSpacing([20, 20, 50])                  # a size that scans have, but none of this dataset
    sitk.WriteImage(image, str(path))
    with pytest.raises(UserError, match="has spacing .* the labelled cases"):
        preprocess_pool(load_experiment(701, "2d"))


def test_stored_values_among_hounsfield_units(raw: Path) -> None:
    path = raw / "imagesUl" / "phantom_ul_000_0000.nii.gz"
    rewrite(path, lambda image: (image + 1024).clip(0, 4095))
    with pytest.raises(UserError, match="phantom_ul_000_0000.nii.gz holds values from 0 on with tissue around 1024"):
        preprocess_pool(load_experiment(701, "2d"))


def test_layout_of_another_shape(raw: Path) -> None:
    rewrite(raw / "layoutsUl" / "phantom_ul_000.nii.gz", lambda layout: layout[:, :-4])
    with pytest.raises(UserError, match="voxel grid of its image"):
        preprocess_pool(load_experiment(701, "2d"))


def test_layout_with_an_undeclared_value(raw: Path) -> None:
    rewrite(raw / "layoutsTr" / "phantom_tr_000.nii.gz", lambda layout: layout + 6 * (layout == 1).astype(layout.dtype))
    with pytest.raises(UserError, match=r"value\(s\) \[7\] that dataset.json does not declare"):
        preprocess_pool(load_experiment(701, "2d"))


def test_truncated_image_leaves_nothing_half_written(raw: Path) -> None:
    path = raw / "imagesUl" / "phantom_ul_000_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    experiment = load_experiment(701, "2d")
    with pytest.raises(UserError, match="phantom_ul_000_0000.nii.gz"):
        preprocess_pool(experiment)
    assert not list(experiment.pool_folder.iterdir())
