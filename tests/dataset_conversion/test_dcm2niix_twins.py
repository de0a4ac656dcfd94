"""Pairs as dcm2niix 1.0.20260724 writes them: names, geometry and shared slices were looked at in its output."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion import folder
from nnunet_synth.dataset_conversion.dcm2niix_twins import find_twins, one_of
from nnunet_synth.dataset_conversion.folder import Options, find_cases
from nnunet_synth.dataset_conversion.report import ConversionReport
from nnunet_synth.dataset_conversion.sources import list_files
from nnunet_synth.dataset_conversion.writer import write_dataset
from tests.makers.dicom import random_hu

KEPT = [*range(10), *range(12, 24)]             # slices 10 and 11 were never sent
EVEN = random_hu((24, 12, 10))
EVEN[10:12] = (EVEN[9].astype(int) + EVEN[12]) // 2


def save(array: np.ndarray, path: Path, spacing: tuple[float, ...] = (0.7, 0.75, 5.0)) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-20.5, -31.25, 112.75))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def scans(tmp_path) -> Path:
    """The two files of one scan with a gap, and another scan."""
    save(EVEN[KEPT], tmp_path / "scans" / "x.nii.gz")
    save(EVEN, tmp_path / "scans" / "x_Eq_1.nii.gz")
    save(random_hu((24, 12, 10), seed=3), tmp_path / "scans" / "y.nii.gz")
    return tmp_path / "scans"


def label(scans: Path, name: str) -> None:
    image = SimpleITK.ReadImage(str(scans / f"{name}.nii.gz"))
    save((SimpleITK.GetArrayFromImage(image) > 1000).astype(np.uint8), scans.parent / "labels" / f"{name}.nii.gz")


def convert(scans: Path, **options) -> ConversionReport:
    chosen = Options(labels=scans.parent / "labels", **options)
    return write_dataset(find_cases(scans, chosen), folder.describe(chosen), scans.parent / "raw" / "Dataset009_Own")


def twins(scans: Path) -> list[tuple[str, ...]]:
    return find_twins({file.path.name.removesuffix(".nii.gz"): file for file in list_files(scans)})


def test_one_case_is_made_of_the_two(scans):
    label(scans, "y")
    report = convert(scans)
    assert {case.id: case.role for case in report.cases} == {"x_Eq_1": "unlabelled", "y": "labelled"}
    written = SimpleITK.ReadImage(str(report.folder / "imagesUl" / "x_Eq_1_0000.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written)[:, ::-1], EVEN)
    assert [(Path(one.file).name, one.reason) for one in report.passed_over] == [
        ("x.nii.gz", "dcm2niix wrote this scan twice: x_Eq_1 is taken")]
    assert "not used: 1 file(s)" in report.table()


def test_the_one_with_a_label_map_is_taken(scans):
    label(scans, "x")
    report = convert(scans)
    assert {case.id: case.role for case in report.cases} == {"x": "labelled", "y": "unlabelled"}
    assert any("NOT repaired: slices at uneven distances" in repair for repair in report.cases[0].repairs)


def test_of_two_with_label_maps_the_even_one(scans):
    label(scans, "x")
    label(scans, "x_Eq_1")
    report = convert(scans)
    assert {case.id: case.role for case in report.cases} == {"x_Eq_1": "labelled", "y": "unlabelled"}
    assert {Path(one.file).parent.name for one in report.passed_over} == {"scans", "labels"}


def test_the_other_one_among_the_unlabelled_scans(scans):
    label(scans, "x")
    (scans.parent / "more").mkdir()
    (scans / "x_Eq_1.nii.gz").rename(scans.parent / "more" / "x_Eq_1.nii.gz")
    save(random_hu((24, 12, 10), seed=4), scans.parent / "more" / "z.nii.gz")
    assert {case.id for case in convert(scans, unlabelled=scans.parent / "more").cases} == {"x", "y", "z"}


@pytest.mark.parametrize("change", [
    lambda scans: save(random_hu((24, 12, 10), seed=8), scans / "x_Eq_1.nii.gz"),           # another patient
    lambda scans: save(EVEN, scans / "x_Eq_1.nii.gz", (0.7, 0.7, 5.0)),
    lambda scans: save(EVEN[:, :, :8], scans / "x_Eq_1.nii.gz"),
    lambda scans: (scans / "x_Eq_1.nii.gz").rename(scans / "x_copy_1.nii.gz"),
    lambda scans: (scans / "x.nii.gz").rename(scans / "w.nii.gz"),
    lambda scans: (scans / "x.nii.gz").write_bytes(b"no image"),
])
def test_other_pairs_are_two_scans(scans, change):
    change(scans)
    assert twins(scans) == []


def test_a_tilted_gantry(scans):
    """Sheared back: more rows, no slice is shared; with a gap there are more slices, too."""
    save(np.zeros((24, 30, 10), np.int16), scans / "y_Tilt_1.nii.gz")
    save(np.zeros((25, 30, 10), np.int16), scans / "y_Tilt_Eq_1.nii.gz")
    assert sorted(twins(scans)) == [("x_Eq_1", "x"), ("y_Tilt_Eq_1", "y_Tilt_1", "y")]


def test_which_one_is_taken():
    names = ("x_Tilt_Eq_1", "x_Tilt_1", "x")
    assert one_of(names, ()) == one_of(names, names) == "x_Tilt_Eq_1"
    assert one_of(names, ("x", "x_Tilt_1")) == "x_Tilt_1" and one_of(names, ("x",)) == "x"
