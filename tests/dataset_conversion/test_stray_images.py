from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom.uid import SecondaryCaptureImageStorage

from nnunet_synth.dataset_conversion.dicom_checks import check_series
from nnunet_synth.dataset_conversion.dicom_series import Series, scan_series
from nnunet_synth.dataset_conversion.dicom_voxels import read_series
from nnunet_synth.dataset_conversion.sources import list_files
from nnunet_synth.dataset_conversion.stray_images import MAX_STRAYS, without_strays
from tests.makers.dicom import CORONAL, SAGITTAL, CTSeries, random_hu, uid


def beside(folder: Path, number: int = 1, shape: tuple[int, int] = (12, 10), **options) -> list[Path]:
    """Write more images of the same series UID, which are named after the slices."""
    edit = options.pop("edit", lambda dataset, index: None)

    def stray(dataset, index):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("stray", index)
        edit(dataset, index)
    files = CTSeries(random_hu((number, *shape), seed=9), edit=stray, **options).write(folder / "strays")
    return [file.rename(folder / f"stray_{file.name}") for file in files]


def tagged(**tags):
    def edit(dataset, index):
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
    return edit


def found(folder: Path, allow_gaps: bool = False) -> Series:
    series, = scan_series(list_files(folder))
    return without_strays(series, 20, allow_gaps)


LOCALIZER = tagged(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def capture(dataset, index):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient


@pytest.mark.parametrize(("options", "reason"), [
    ({"orientation": CORONAL, "edit": LOCALIZER}, "a scout (localizer), no scan"),
    ({"orientation": CORONAL, "edit": LOCALIZER, "shape": (30, 7)}, "a scout (localizer), no scan"),
    ({"edit": LOCALIZER}, "a scout (localizer), no scan"),
    ({"orientation": CORONAL}, "in another plane"), ({"orientation": SAGITTAL}, "in another plane"),
    ({"shape": (24, 20)}, "of another size, 24 x 20"),
    ({"origin": (-20.5, -31.25, 1500.0)}, "1272 mm away from the others"),
    ({"origin": (-20.5, -31.25, -900.0)}, "1013 mm away from the others"),
    ({"edit": capture}, "no CT image but Secondary Capture Image Storage"),
    ({"edit": tagged(Modality="SR")}, "modality SR, not CT"),
])
@pytest.mark.parametrize("allow_gaps", [False, True])
def test_one_image_that_shares_the_uid_does_not_cost_the_scan(tmp_path, options, reason, allow_gaps):
    series = CTSeries(random_hu())
    series.write(tmp_path)
    stray, = beside(tmp_path, **options)
    scan = found(tmp_path, allow_gaps)
    assert check_series(scan) is None
    assert [(one.file, one.reason) for one in scan.dropped] == [(str(stray), reason)]
    image, repairs = read_series(scan)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), series.hu)
    assert repairs == (f"1 stray image(s) dropped: {reason}",)


def test_two_scouts_and_a_report(tmp_path):
    CTSeries(random_hu()).write(tmp_path)
    beside(tmp_path, 2, orientation=SAGITTAL, edit=LOCALIZER)
    scan = found(tmp_path)
    assert len(scan.slices) == 24
    assert read_series(scan)[1] == ("2 stray image(s) dropped: a scout (localizer), no scan",)


@pytest.mark.parametrize("write", [
    lambda folder: beside(folder, MAX_STRAYS + 1, orientation=CORONAL),         # two scans under one UID
    lambda folder: beside(folder, 1, edit=tagged(PixelSpacing=[0.5, 0.5])),     # a slice, in another field of view
    lambda folder: beside(folder, 1),                                           # at the place of another slice
    lambda folder: beside(folder, 1, origin=(-20.5, -31.25, 112.75 + 26 * 5)),  # two slices further
    lambda folder: beside(folder, 1, edit=tagged(ImageOrientationPatient=[1, 0, 0, 0, -1, 0])),
], ids=["many", "spacing", "place", "gap", "flipped"])
def test_what_may_be_a_slice_is_not_dropped(tmp_path, write):
    CTSeries(random_hu()).write(tmp_path)
    before = check_series(scan_series(list_files(tmp_path))[0])
    write(tmp_path)
    scan = found(tmp_path)
    assert before is None and not scan.dropped and check_series(scan) is not None


def test_a_slice_of_the_stack_is_not_dropped(tmp_path):
    """Without it the rest has a gap, and the reason stays that of the slice."""
    CTSeries(random_hu(), edit=lambda one, index: LOCALIZER(one, index) if index == 7 else None).write(tmp_path)
    assert check_series(found(tmp_path)) == "a scout (localizer), no scan"


def test_scouts_alone_are_scouts(tmp_path):
    beside(tmp_path, 2, orientation=CORONAL, edit=LOCALIZER)
    assert check_series(found(tmp_path)) == "a scout (localizer), no scan"
