"""The pool and the layouts: nnU-Net's own preprocessing, what is redone and what is kept, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention

from nnunet_synth.commands.preprocess import preprocess
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.labelled_geometry import LabelledGeometry
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


# -- copies under another name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["imagesTr/phantom_tr_004", "imagesTs/phantom_ts_001"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_renamed_labelled_or_test_case_is_refused(planned_dataset: Path, raw: Path, source: str, when: str) -> None:
    """With another type, and whether it came before or after the rest of the pool was preprocessed."""
    if when == "after":
        preprocess_pool(load_experiment(701, "2d"))
    copy = raw / "imagesUl" / "phantom_ul_900_0000.nii.gz"
    image = sitk.Cast(sitk.ReadImage(str(raw / f"{source}_0000.nii.gz")), sitk.sitkFloat64)
    sitk.WriteImage(image, str(copy))
    for _ in range(2):          # the second time it is known, and refused before anything is read
        with pytest.raises(UserError, match=rf"imagesUl/phantom_ul_900 \(the same as {source}\)"):
            preprocess_pool(load_experiment(701, "2d"))
    copy.unlink()
    assert preprocess_pool(load_experiment(701, "2d")).warnings == []
    assert PoolPlan(load_experiment(701, "2d")).is_complete


def test_a_new_test_case_that_is_in_the_pool_is_refused(planned_dataset: Path, raw: Path) -> None:
    preprocess_pool(load_experiment(701, "2d"))
    image = (raw / "imagesUl" / "phantom_ul_001_0000.nii.gz").read_bytes()
    (raw / "imagesTs" / "phantom_ts_900_0000.nii.gz").write_bytes(image)
    with pytest.raises(UserError, match=r"imagesUl/phantom_ul_001 \(the same as imagesTs/phantom_ts_900\)"):
        preprocess_pool(load_experiment(701, "2d"))


def test_a_mirrored_copy_is_named(planned_dataset: Path, raw: Path) -> None:
    source = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / "phantom_tr_002_0000.nii.gz")))
    rewrite(raw / "imagesUl" / "phantom_ul_000_0000.nii.gz", lambda _: source[:, ::-1, ::-1])
    for _ in range(2):
        warning, = preprocess_pool(load_experiment(701, "2d")).warnings
        assert "imagesUl/phantom_ul_000 is nearly a copy of imagesTr/phantom_tr_002 (correlation 1.0000" in warning


def test_the_same_scan_twice_in_the_pool_is_told(planned_dataset: Path, raw: Path) -> None:
    image = (raw / "imagesUl" / "phantom_ul_001_0000.nii.gz").read_bytes()
    (raw / "imagesUl" / "phantom_ul_900_0000.nii.gz").write_bytes(image)
    assert preprocess_pool(load_experiment(701, "2d")).warnings == [
        "imagesUl/phantom_ul_001, imagesUl/phantom_ul_900 hold the same voxels: they count as often"]


def test_an_up_to_date_pool_is_checked_without_reading_an_image(
        planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess_pool(load_experiment(701, "2d"))
    for name in ("nnunet_synth.data.pool_copies.read_image", "nnunet_synth.data.unlabelled.read_image",
                 "nnunet_synth.data.made_of._sha256", "nnunet_synth.data.pool_copies.suspicious_pairs"):
        monkeypatch.setattr(name, None)
    assert preprocess_pool(load_experiment(701, "2d")).missing_cases == []


def test_an_unreadable_test_case_is_told_and_no_reason_to_stop(planned_dataset: Path, raw: Path) -> None:
    (raw / "imagesTs" / "phantom_ts_000_0000.nii.gz").write_bytes(b"")
    warning, = preprocess_pool(load_experiment(701, "2d")).warnings
    assert warning.startswith("imagesTs/phantom_ts_000 was not compared with the pool: ") and "empty" in warning


# -- another file in its place -----------------------------------------------------------------------------------------


def test_what_is_replaced_by_an_older_copy_is_done_again(planned_dataset: Path, raw: Path) -> None:
    preprocess_pool(load_experiment(701, "2d"))
    image, layout = raw / "imagesUl/phantom_ul_001_0000.nii.gz", raw / "layoutsTr/phantom_tr_003.nii.gz"
    rewrite(image, lambda voxels: voxels + np.int16(1))
    rewrite(layout, lambda voxels: np.where(voxels == 2, 1, voxels).astype(voxels.dtype))
    for path in (image, layout):
        os.utime(path, (1e9, 1e9))
    touched = raw / "imagesUl/phantom_ul_002_0000.nii.gz"
    os.utime(touched)
    plan = preprocess_pool(load_experiment(701, "2d"))
    assert plan.missing_cases == ["phantom_ul_001"]
    assert [case_id for case_id, _ in plan.missing_layouts] == ["phantom_tr_003", "phantom_ul_001"]
    assert PoolPlan(load_experiment(701, "2d")).is_complete


@pytest.mark.parametrize("text", ["", "[]", '{"sources": 3}'])
def test_a_damaged_note_means_once_more(planned_dataset: Path, text: str) -> None:
    experiment = load_experiment(701, "2d")
    preprocess_pool(experiment)
    (experiment.pool_notes_folder / "phantom_ul_000.json").write_text(text)
    assert preprocess_pool(load_experiment(701, "2d")).missing_cases == ["phantom_ul_000"]


# -- names, permissions, dimensions ------------------------------------------------------------------------------------


def test_files_that_are_passed_over_are_named(planned_dataset: Path, raw: Path) -> None:
    for name in ("b.nii.gz", "a_0000.NII", "._x_0000.nii.gz"):
        (raw / "imagesUl" / name).write_bytes(b"")
    (raw / "layoutsTr" / "phantom_tr_000_0000.nii.gz").write_bytes(b"")
    first, second = preprocess_pool(load_experiment(701, "2d")).warnings
    assert "imagesUl holds 2 file(s) that are not called CASE_0000.nii.gz and are passed over: a_0000.NII, b.nii.gz;" \
        in first
    assert "layoutsTr holds 1 file(s) that are not called CASE.nii.gz as a case of imagesTr" in second


def test_a_pool_of_wrong_names_only_is_refused(planned_dataset: Path, raw: Path) -> None:
    for path in (raw / "imagesUl").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    with pytest.raises(UserError, match=r"imagesUl holds 3 file\(s\) that are not called CASE_0000.nii.gz .* rename"):
        preprocess("701", "2d")


def test_a_pool_that_may_not_be_read_is_not_empty(planned_dataset: Path, raw: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(701, "2d")
    preprocess_pool(experiment)
    listed = Path.iterdir

    def forbidden(folder: Path):
        if folder.name == "imagesUl":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(UserError, match="imagesUl cannot be read: Permission denied"):
        preprocess("701", "2d", force=True)
    assert len(list(experiment.pool_folder.glob("*.pkl"))) == 3, "and what was made of it stays"


@pytest.mark.parametrize(("shape", "said"), [
    ((48, 48), "is a 2D image, the labelled ones are 3D: put its slices into one volume"),
    ((2, 4, 48, 48), "is a 4D image, the labelled ones are 3D: save every volume of it as a case of its own")])
def test_other_dimensions_are_called_so(planned_dataset: Path, raw: Path, shape: tuple[int, ...], said: str) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 500, shape).astype(np.int16), False)
    sitk.WriteImage(image, str(raw / "imagesUl" / "phantom_ul_000_0000.nii.gz"))
    with pytest.raises(UserError, match=f"phantom_ul_000_0000.nii.gz {said}"):
        preprocess_pool(load_experiment(701, "2d"))


def test_a_flat_image_has_no_slice_distance(tmp_path: Path) -> None:
    """nnU-Net's reader makes one up: 999 times the distance of the pixels."""
    flat = LabelledGeometry(0.5, 0.7, 2)
    flat.check_spacing([499.5, 0.5, 0.5], tmp_path)
    with pytest.raises(UserError, match=r"spacing \[0\.05, 0\.05\] mm, the labelled cases 0\.5 to 0\.7 mm"):
        flat.check_spacing([49.95, 0.05, 0.05], tmp_path)
