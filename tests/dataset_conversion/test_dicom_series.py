import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from scipy.ndimage import binary_dilation, binary_fill_holes, label

from nnunet_synth.dataset_conversion.dicom_checks import check_series
from nnunet_synth.dataset_conversion.dicom_series import scan_files, scan_series
from nnunet_synth.dataset_conversion.dicom_voxels import read_series
from nnunet_synth.dataset_conversion.sources import list_files
from nnunet_synth.errors import UserError
from tests.makers.dicom import CORONAL, SAGITTAL, CTSeries, as_raw_datasets, random_hu, uid

SHAPE = (24, 12, 10)


def scan(folder: Path) -> list:
    return scan_series(list_files(folder))


def read(folder: Path) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    series, = scan(folder)
    assert check_series(series) is None
    return read_series(series)


def reason(folder: Path, **options) -> str:
    series, = scan(folder)
    return check_series(series, **options)


def values_where_planted(series: CTSeries, image: SimpleITK.Image) -> np.ndarray:
    """The image at the physical points of the planted voxels, [slice, row, column]."""
    slices, rows, columns = np.indices(series.hu.shape).reshape(3, -1)
    points = (series.affine() @ np.stack([columns, rows, slices, np.ones(slices.size)]))[:3].T
    index = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in points.tolist()])
    assert np.abs(index - np.rint(index)).max() < 1e-2
    x, y, z = np.rint(index).astype(int).T
    return SimpleITK.GetArrayFromImage(image)[z, y, x].reshape(series.hu.shape)


# -- reading -----------------------------------------------------------------------------------------------------------


def rescaled(index: int) -> CTSeries:
    """HU that slopes of 1, 2, 3 and intercepts of -1024, -1023, … make, another for each slice."""
    stored = np.random.default_rng(3).permutation(np.arange(np.prod(SHAPE)) % 1000).reshape(SHAPE)
    slope, intercept = np.arange(SHAPE[0]) % 3 + 1, np.arange(SHAPE[0]) % 5 - 1024
    return CTSeries((stored * slope[:, None, None] + intercept[:, None, None]).astype(np.int16),
                    slope=lambda i: int(slope[i]), intercept=lambda i: int(intercept[i]), signed=bool(index))


@pytest.mark.parametrize("series", [
    CTSeries(random_hu()),
    CTSeries(random_hu(), signed=False),
    CTSeries(random_hu(), intercept=lambda index: 0),
    CTSeries(random_hu(), instances=np.random.default_rng(1).permutation(24).tolist()),
    CTSeries(random_hu(), instances=list(range(24, 0, -1))),
    CTSeries(random_hu(), spacing=(0.75, 0.6, 0.6)),
    rescaled(0), rescaled(1),
], ids=["plain", "unsigned", "intercept 0", "shuffled", "reversed", "thin", "rescaled", "rescaled signed"])
def test_every_voxel_has_its_hu_at_its_place(tmp_path, series):
    series.write(tmp_path)
    image, repairs = read(tmp_path)
    np.testing.assert_array_equal(values_where_planted(series, image), series.hu)
    assert image.GetPixelID() == SimpleITK.sitkInt16 and repairs == ()
    assert image.GetNumberOfPixels() == series.hu.size and not image.GetMetaDataKeys()


@pytest.mark.parametrize("row", [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0.98, 0.199, 0)])
@pytest.mark.parametrize("turn", [1, -1])
def test_however_the_patient_lies_the_array_is_lps(tmp_path, row, turn):
    row = np.array(row) / np.linalg.norm(row)
    series = CTSeries(random_hu(), orientation=(tuple(row), tuple(turn * np.array([-row[1], row[0], 0]))))
    series.write(tmp_path)
    image, repairs = read(tmp_path)
    np.testing.assert_array_equal(values_where_planted(series, image), series.hu)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert (np.diag(direction) > 0.9).all()
    is_lps = row[0] > 0.9 and turn == 1
    assert bool(repairs) != is_lps and all(repair.startswith("turned from") for repair in repairs)


def test_fractions_stay_what_they_are(tmp_path):
    series = CTSeries(random_hu() + 0.5, slope=lambda index: 0.5)
    series.write(tmp_path)
    image, _ = read(tmp_path)
    assert image.GetPixelID() == SimpleITK.sitkFloat32
    np.testing.assert_array_equal(values_where_planted(series, image), series.hu)


def test_twelve_bits_with_a_sign(tmp_path):
    def mask(dataset, index):
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<i2") & 0xFFF).astype("<u2").tobytes()

    series = CTSeries(np.clip(random_hu(), -1024, 2047), intercept=lambda index: 0, edit=mask)
    series.write(tmp_path)
    np.testing.assert_array_equal(values_where_planted(series, read(tmp_path)[0]), series.hu)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
                                    RLELossless], ids=lambda syntax: syntax.name)
def test_transfer_syntaxes_that_gdcm_decodes(tmp_path, syntax):
    def transcode(dataset, index):
        if syntax is RLELossless:
            dataset.compress(RLELossless)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("series", index)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        if syntax is ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
            dataset["PixelData"].VR = "OW"

    series = CTSeries(random_hu(), edit=transcode)
    series.write(tmp_path)
    np.testing.assert_array_equal(values_where_planted(series, read(tmp_path)[0]), series.hu)


@pytest.mark.parametrize("is_implicit", [False, True])
@pytest.mark.parametrize("ending", [".dcm", "", ".1"])
def test_data_sets_without_preamble_and_meta_header(tmp_path, is_implicit, ending):
    series = CTSeries(random_hu(), signed=False)
    as_raw_datasets(series.write(tmp_path), is_implicit, ending)
    np.testing.assert_array_equal(values_where_planted(series, read(tmp_path)[0]), series.hu)


def test_data_sets_without_preamble_but_with_a_meta_header(tmp_path):
    series = CTSeries(random_hu())
    for file in series.write(tmp_path):
        file.write_bytes(file.read_bytes()[132:])
    np.testing.assert_array_equal(values_where_planted(series, read(tmp_path)[0]), series.hu)


@pytest.mark.parametrize("name", ["scans.zip", "scans.tar"])
def test_archives_are_read_slice_by_slice_and_leave_nothing(tmp_path, monkeypatch, name):
    series = CTSeries(random_hu())
    series.write(tmp_path / "scans")
    shutil.make_archive(str(tmp_path / "scans"), name[-3:], tmp_path / "scans")
    shutil.rmtree(tmp_path / "scans")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    one, = scan_series(list_files(tmp_path / name))
    np.testing.assert_array_equal(values_where_planted(series, read_series(one)[0]), series.hu)
    assert not list((tmp_path / "temporary").iterdir())


# -- padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "intercept", "signed", "declared"), [
    (-2000, -1024, True, True), (-2000, -1024, True, False), (-2048, 0, True, False), (-2048, 0, True, True),
    (63536, -1024, False, True), (-2000, 0, True, True),
])
def test_outside_the_circle_is_air(tmp_path, padding, intercept, signed, declared):
    series = CTSeries(np.abs(random_hu()), padding=padding, signed=signed, declares_padding=declared,
                      intercept=lambda index: intercept)
    series.write(tmp_path)
    image, repairs = read(tmp_path)
    expected = series.hu.copy()
    expected[:, series.outside()] = -1024
    np.testing.assert_array_equal(values_where_planted(series, image), expected)
    assert repairs == ("padding set to -1024 HU",) and image.GetPixelID() == SimpleITK.sitkInt16


def test_padding_declared_as_if_the_pixels_were_unsigned(tmp_path):
    """63536 for -2000, a frequent mistake; here -2000 + intercept is a CT number that padding alone has."""
    series = CTSeries(random_hu(), padding=-2000, declares_padding=False,
                      edit=lambda one, index: one.add_new("PixelPaddingValue", "US", 63536))
    series.write(tmp_path)
    assert (values_where_planted(series, read(tmp_path)[0])[:, series.outside()] == -1024).all()


def test_a_range_of_padding(tmp_path):
    def limit(dataset, index):
        dataset.add_new("PixelPaddingRangeLimit", "SS", -1990)
        pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(SHAPE[1:]).copy()
        pixels[0, 0] = -1995
        dataset.PixelData = pixels.tobytes()

    series = CTSeries(random_hu(), padding=-2000, edit=limit)
    series.write(tmp_path)
    assert (values_where_planted(series, read(tmp_path)[0])[:, series.outside()] == -1024).all()


def test_tissue_with_the_value_of_the_padding_is_no_padding(tmp_path):
    hu = np.full((24, 30, 30), 40, np.int16)
    hu[:, 12:18, 12:18] = 0
    series = CTSeries(hu, padding=0, intercept=lambda index: 0)
    series.write(tmp_path)
    expected = hu.copy()
    expected[:, series.outside()] = -1024
    np.testing.assert_array_equal(values_where_planted(series, read(tmp_path)[0]), expected)


def test_noise_below_the_scale_is_left_alone(tmp_path):
    hu = random_hu()
    hu[:, 5, 5], hu[:, 0, 0] = -1258, -900
    series = CTSeries(hu, intercept=lambda index: 0)
    series.write(tmp_path)
    image, repairs = read(tmp_path)
    np.testing.assert_array_equal(values_where_planted(series, image), hu)
    assert repairs == ()


def test_signed_pixels_called_unsigned_are_refused(tmp_path):
    CTSeries(random_hu(), padding=-2000, declares_padding=False,
             edit=lambda one, index: setattr(one, "PixelRepresentation", 0)).write(tmp_path)
    series, = scan(tmp_path)
    with pytest.raises(UserError, match="values up to 62512 HU"):
        read_series(series)


# -- what is no axial CT volume ----------------------------------------------------------------------------------------


def edit(index_of=None, **tags):
    """Set tags in all slices, or in one; None deletes."""
    def change(dataset, index):
        if index_of in (None, index):
            for keyword, value in tags.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)
    return change


def multi_frame(dataset, index):
    dataset.NumberOfFrames = 2
    dataset.PixelData *= 2


def compressed(dataset, index):
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    dataset["PixelData"].VR = "OB"


def enhanced(per_frame: bool):
    """One enhanced file, its places and slopes in functional groups and none in the plain header."""
    def change(dataset, index):
        def group(slope: float) -> Dataset:
            value = Dataset()
            value.RescaleSlope, value.RescaleIntercept, value.RescaleType = slope, -1024, "HU"
            one = Dataset()
            one.PixelValueTransformationSequence = [value]
            return one
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
        dataset.NumberOfFrames = 2
        dataset.PixelData *= 2
        dataset.SharedFunctionalGroupsSequence = [Dataset()] if per_frame else [group(1)]
        dataset.PerFrameFunctionalGroupsSequence = [group(1), group(2)] if per_frame else [Dataset(), Dataset()]
        for keyword in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient"):
            delattr(dataset, keyword)
    return change


def slope_of_frames(dataset, index):
    """A plain CT image whose slope stands where an enhanced one has it."""
    value, group = Dataset(), Dataset()
    value.RescaleSlope, value.RescaleIntercept = 2, -1024
    group.PixelValueTransformationSequence = [value]
    dataset.PerFrameFunctionalGroupsSequence = [group]
    del dataset.RescaleSlope, dataset.RescaleIntercept


def smaller(dataset, index):
    if index == 5:
        dataset.Rows -= 2
        dataset.PixelData = dataset.PixelData[:dataset.Rows * dataset.Columns * 2]


def sheared(dataset, index):
    """Slices turned about x by 12 degrees that still follow each other along z: what a tilted gantry makes."""
    angle = np.radians(12)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, round(np.cos(angle), 6), round(np.sin(angle), 6)]


def oblique(degrees: float) -> tuple:
    angle = np.radians(degrees)
    return (1, 0, 0), (0, np.cos(angle), np.sin(angle))


@pytest.mark.parametrize(("options", "expected"), [
    ({"edit": edit(Modality="MR")}, "modality MR, not CT"),
    ({"edit": multi_frame}, "multi-frame"),
    ({"edit": edit(SOPClassUID=EnhancedCTImageStorage)}, "multi-frame"),
    ({"edit": enhanced(per_frame=True)}, "multi-frame .enhanced. DICOM, each frame with .* a slope of its own"),
    ({"edit": enhanced(per_frame=False)}, "multi-frame .enhanced. DICOM"),
    ({"edit": slope_of_frames}, "rescale slope and intercept"),
    ({"edit": edit(SOPClassUID=SecondaryCaptureImageStorage)}, "no CT image but Secondary Capture Image Storage"),
    ({"edit": edit(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}, "scout"),
    ({"edit": edit(ImageType=["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"])}, r"projection \(MIP\)"),
    ({"edit": compressed}, "compressed as High-Throughput JPEG 2000.*decompress"),
    ({"edit": edit(PhotometricInterpretation="MONOCHROME1")}, "MONOCHROME1, not MONOCHROME2"),
    ({"edit": edit(RescaleType="Z_EFF")}, "values in Z_EFF, not in HU"),
    ({"edit": edit(RescaleIntercept=None)}, "rescale"),
    ({"edit": edit(RescaleSlope=0)}, "rescale"),
    ({"edit": edit(7, ImagePositionPatient=None)}, "1 of 24 slices have no position"),
    ({"edit": edit(7, ImageOrientationPatient=None)}, "1 of 24 slices have no orientation"),
    ({"edit": edit(PixelSpacing=None)}, "24 of 24 slices have no pixel spacing"),
    ({"edit": edit(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])}, "mixed orientations in one series"),
    ({"edit": edit(3, ImageOrientationPatient=[1, 0, 0, 0, -1, 0])}, "mixed orientations in one series"),
    ({"edit": edit(3, PixelSpacing=[0.75, 0.71])}, "mixed pixel spacings in one series"),
    ({"edit": smaller}, "mixed sizes in one series: 10 x 10 and 12 x 10"),
    ({"orientation": CORONAL}, "^coronal, not axial"),
    ({"orientation": SAGITTAL}, "^sagittal, not axial"),
    ({"orientation": oblique(25)}, "oblique by 25 degrees, not axial"),
    ({"orientation": ((1, 0, 0), (0.3, 0.954, 0))}, "perpendicular"),
    ({"edit": sheared}, r"gantry tilt of 12\.0 degrees"),
    ({"edit": edit(GantryDetectorTilt=8)}, r"gantry tilt of 8\.0 degrees, while"),
    ({"hu": random_hu((19, 12, 10))}, r"19 slice\(s\), fewer than 20 \(--min-slices\)"),
    ({"heights": [0.0] + [5.0 * max(index, 2) for index in range(1, 24)]}, r"1 slice\(s\) lie where another one"),
    ({"skip": [10]}, r"1 slice\(s\) missing at 1 place\(s\), spacing 5\.00 mm \(--allow-gaps"),
    ({"skip": [1]}, r"1 slice\(s\) missing at 1 place"),
    ({"skip": [10, 11, 15]}, r"3 slice\(s\) missing at 2 place"),
    ({"heights": [index * 5.0 + (index == 9) * 1.5 for index in range(24)]}, r"irregular spacing, 3\.50 to 6\.50 mm"),
    ({"heights": [index * 5.0 if index < 12 else 60 + (index - 12) * 5.3 for index in range(24)]}, "irregular spacing"),
])
def test_each_is_rejected_for_its_own_reason(tmp_path, options, expected):
    options = {"hu": random_hu(), **options}
    skip = options.pop("skip", ())
    if skip:
        options["hu"] = random_hu((30, 12, 10))
    CTSeries(**options).write(tmp_path, skip)
    told = reason(tmp_path)
    assert told is not None and "\n" not in told
    assert re.search(expected, told), told
    series, = scan(tmp_path)
    assert series.uid not in told and str(tmp_path) not in told


@pytest.mark.parametrize(("keyword", "written"), [
    ("PixelSpacing", "0.75\\0.75"), ("RescaleSlope", "1.00"), ("RescaleIntercept", "-1024.0"),
    ("ImageOrientationPatient", "1.0\\0.0\\0.0\\0.0\\1.0\\0.0"),
])
def test_a_decimal_comma_is_named(tmp_path, keyword, written):
    for file in CTSeries(random_hu(), edit=edit(**{keyword: written.split("\\")})).write(tmp_path):
        content = file.read_bytes()
        assert content.count(written.encode()) == 1
        file.write_bytes(content.replace(written.encode(), written.replace(".", ",").encode()))
    told = f"24 of 24 slices: {keyword} is '{written.replace('.', ',')}', with a decimal comma"
    assert reason(tmp_path).startswith(told)


def test_words_for_a_number_are_not_repeated(tmp_path):
    for file in CTSeries(random_hu(), edit=edit(RescaleSlope="1.000000")).write(tmp_path):
        file.write_bytes(file.read_bytes().replace(b"1.000000", b"Mu,st-er"))
    assert reason(tmp_path).startswith("24 of 24 slices: RescaleSlope holds something that is no number")


@pytest.mark.parametrize("options", [
    {"orientation": oblique(6)},                                                    # a patient lying askew
    {"heights": [round(index * 0.75, 1) for index in range(24)]},                   # written with one decimal
    {"heights": [index * 5.0 + 0.4 * (index == 9) for index in range(24)]},         # less than a tenth of a slice
    {"edit": edit(GantryDetectorTilt=None)},
    {"edit": edit(RescaleType=None)}, {"edit": edit(RescaleType="Houndsfield Unit")},
    {"edit": edit(SliceThickness=None)},
    {"edit": edit(ImageType=["DERIVED", "SECONDARY", "AXIAL"])},
])
def test_what_is_odd_but_sound_is_accepted(tmp_path, options):
    CTSeries(random_hu(), **options).write(tmp_path)
    assert reason(tmp_path) is None


def test_min_slices_is_the_users(tmp_path):
    series = CTSeries(random_hu((3, 12, 10)))
    series.write(tmp_path)
    assert reason(tmp_path) and reason(tmp_path, min_slices=3) is None
    one = CTSeries(random_hu((1, 12, 10)), series="one")
    one.write(tmp_path / "one")
    single, = scan(tmp_path / "one")
    assert check_series(single, min_slices=1) is None
    image, _ = read_series(single)
    np.testing.assert_array_equal(values_where_planted(one, image), one.hu)
    assert image.GetSpacing() == pytest.approx((0.7, 0.75, 5.0))            # as thick as its header says


# -- gaps --------------------------------------------------------------------------------------------------------------


def test_gaps_are_filled_linearly_and_nothing_else_changes(tmp_path):
    hu = (np.arange(30)[:, None, None] * 10 + random_hu((1, 12, 10), seed=5) // 10).astype(np.int16)
    series = CTSeries(hu)
    series.write(tmp_path, skip=[4, 10, 11])
    assert reason(tmp_path, allow_gaps=True) is None
    one, = scan(tmp_path)
    image, repairs = read_series(one)
    np.testing.assert_array_equal(values_where_planted(series, image), hu)  # linear in z: interpolation is exact
    assert image.GetSize() == (10, 12, 30)
    assert repairs == ("3 slice(s) interpolated to a regular spacing of 5.00 mm",)


def test_slices_that_exist_are_not_blurred(tmp_path):
    series = CTSeries(random_hu((30, 12, 10)))
    series.write(tmp_path, skip=[7])
    one, = scan(tmp_path)
    filled = values_where_planted(series, read_series(one)[0])
    kept = [index for index in range(30) if index != 7]
    np.testing.assert_array_equal(filled[kept], series.hu[kept])
    np.testing.assert_array_equal(filled[7], np.rint((series.hu[6].astype(float) + series.hu[8]) / 2))


def test_irregular_heights_are_resampled_where_they_are(tmp_path):
    """HU that grow with the height: after resampling, every slice still tells its own height."""
    heights = np.cumsum(np.random.default_rng(2).uniform(3, 7, 30)).tolist()
    hu = np.rint(np.array(heights) * 10)[:, None, None] + np.zeros((1, 12, 10))
    series = CTSeries(hu.astype(np.int16), heights=heights)
    series.write(tmp_path)
    one, = scan(tmp_path)
    assert check_series(one) and check_series(one, allow_gaps=True) is None
    image, _ = read_series(one)
    values = SimpleITK.GetArrayFromImage(image)[:, 0, 0]
    at = [image.TransformIndexToPhysicalPoint((0, 0, index))[2] - series.origin[2] for index in range(len(values))]
    # A slice within a tenth of a spacing of the grid is taken as it is.
    np.testing.assert_allclose(values / 10, at, atol=0.1 * image.GetSpacing()[2] + 0.1)
    assert at[0] == pytest.approx(heights[0], abs=1e-3) and at[-1] == pytest.approx(heights[-1], abs=1e-3)


# -- files -------------------------------------------------------------------------------------------------------------


def test_series_are_told_apart_by_uid_not_by_folder(tmp_path):
    first, second = CTSeries(random_hu()), CTSeries(random_hu(seed=1), series="other")
    first.write(tmp_path)
    second.write(tmp_path)
    found = {one.uid: one for one in scan(tmp_path)}
    assert set(found) == {first.uid, second.uid}
    for series in (first, second):
        assert check_series(found[series.uid]) is None
        np.testing.assert_array_equal(values_where_planted(series, read_series(found[series.uid])[0]), series.hu)


def test_copies_are_dropped_and_counted(tmp_path):
    series = CTSeries(random_hu())
    files = series.write(tmp_path / "a")
    shutil.copy(files[3], tmp_path / "a" / "copy.dcm")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    image, repairs = read(tmp_path)
    np.testing.assert_array_equal(values_where_planted(series, image), series.hu)
    assert repairs == ("26 duplicate slice(s) dropped",)


def test_one_uid_with_two_contents_is_refused(tmp_path):
    series = CTSeries(random_hu())
    series.write(tmp_path / "a")
    CTSeries(random_hu(seed=1)).write(tmp_path / "b")                   # the same UIDs
    assert "have the same UID and different content" in reason(tmp_path)
    shutil.rmtree(tmp_path / "b")
    CTSeries(random_hu(), edit=lambda one, index: (
        setattr(one, "SOPInstanceUID", uid("b", index)),
        setattr(one.file_meta, "MediaStorageSOPInstanceUID", uid("b", index)))).write(tmp_path / "b")
    assert reason(tmp_path) == ("the same series UID is used in 2 folders with different slices: remove all but one")


@pytest.mark.parametrize("folders", [("a", "b"), ("a", "a")])
def test_one_series_uid_for_two_patients(tmp_path, folders):
    def other(dataset, index):
        dataset.PatientID = "Covid0043"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("other", index)
    CTSeries(random_hu()).write(tmp_path / folders[0])
    CTSeries(random_hu(seed=1), edit=other).write(tmp_path / folders[1])
    assert reason(tmp_path).startswith("2 patients share one series UID: ") and "Covid" not in reason(tmp_path)


def test_every_file_that_is_no_image_is_named(tmp_path):
    CTSeries(random_hu()).write(tmp_path)
    (tmp_path / "README.txt").write_text("scans")
    (tmp_path / "empty").touch()
    media = CTSeries(random_hu((1, 12, 10))).dataset(0)
    media.SOPClassUID = media.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    media.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    for name in ("bad_1.dcm", "bad_2.dcm"):
        (tmp_path / name).write_bytes(b"no image")
    _, passed_over = scan_files(list_files(tmp_path))
    assert {Path(one.file).name: one.reason for one in passed_over} == {
        "DICOMDIR": "a DICOMDIR, the index of a medium", "README.txt": "no DICOM file", "empty": "no DICOM file",
        "bad_1.dcm": "is not a DICOM file, whatever its name says: copy it again",
        "bad_2.dcm": "is not a DICOM file, whatever its name says: copy it again"}


@pytest.mark.parametrize("start", [b"\x08\x00\x08\x00", b"\x08\x00\x05\x00CS\xff\xff", b"\x02\x00\x00\x00UL\x04\x00"])
def test_what_only_begins_like_a_data_set_is_named(tmp_path, start):
    (tmp_path / "odd").write_bytes(start + b"\x0a\x0b\x0c" * 40)
    series, = scan(tmp_path)
    assert "odd is truncated or" in check_series(series)


def test_what_is_not_dicom_and_does_not_claim_to_be_is_passed_over(tmp_path):
    CTSeries(random_hu()).write(tmp_path)
    (tmp_path / "README.txt").write_text("scans")
    (tmp_path / "preview.jpg").write_bytes(b"\xff\xd8\xff")
    assert reason(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"not a DICOM file", b"\0" * 128 + b"DICM", "cut"])
def test_a_broken_slice_spoils_its_series(tmp_path, content):
    """Even at the end of the stack, where no gap would show."""
    files = CTSeries(random_hu()).write(tmp_path / "a")
    CTSeries(random_hu(), series="fine").write(tmp_path / "b")
    broken = tmp_path / "a" / "broken.dcm"
    broken.write_bytes(files[-1].read_bytes()[:700] if content == "cut" else content)
    told = sorted(check_series(one) or "" for one in scan(tmp_path))
    assert told[0] == "" and str(broken) in told[1] and "\n" not in told[1]
    files[0].unlink()
    for file in files[1:]:
        file.unlink()
    assert sorted(check_series(one) or "" for one in scan(tmp_path))[1] == told[1]


def test_truncated_pixels_are_told_when_they_are_read(tmp_path):
    files = CTSeries(random_hu()).write(tmp_path)
    files[5].write_bytes(files[5].read_bytes()[:-20])
    series, = scan(tmp_path)
    with pytest.raises(UserError, match=f"{files[5].name} is truncated or corrupt"):
        read_series(series)


def test_broken_archives_are_told(tmp_path):
    files = CTSeries(random_hu()).write(tmp_path / "scans")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    shutil.rmtree(tmp_path / "scans")
    content = bytearray((tmp_path / "scans.zip").read_bytes())
    place = content.find(b"DICM")
    content[place:place + 4] = b"MCID"                                  # the checksum no longer fits
    (tmp_path / "scans.zip").write_bytes(content)
    assert files[0].name in reason(tmp_path)


# -- real slices -------------------------------------------------------------------------------------------------------

# From the headers, looked at one by one: patient, slice → the padding's stored value (declared by all but the last
# scanner), and the intercept. All reformats have stored values from 0 or -2048 and orientations of their plane.
REAL_AXIAL = {
    "A002304/axial/19001231-076.dcm": (-2000, -1024), "A002304/axial/19010112-135.dcm": (-2000, -1024),
    "A027284/axial/19000925-116.dcm": (-2000, -1024), "A027284/axial/19001231-131.dcm": (-2000, -1024),
    "A046441/axial/19001111-045.dcm": (-2000, -1024), "A046441/axial/19010101-23.dcm": (-2048, 0),
    "A048383/axial/19001231-30.dcm": (-2000, -1024), "A048383/axial/19010410-30.dcm": (-2000, -1024),
}


def test_real_slices_are_accepted_or_rejected_for_the_right_reason(shared_data):
    found = {str(one.slices[0].file.path): check_series(one, min_slices=1) for one in scan(shared_data / "dicom")}
    assert len(found) == 24 and {path for path, why in found.items() if why is None} == set(REAL_AXIAL)
    for path, why in found.items():
        plane = path.split("/")[1]
        assert why == (None if plane == "axial" else f"{plane}, not axial"), path
    assert all("1 slice(s), fewer than 20" in check_series(one) for one in scan(shared_data / "dicom")
               if str(one.slices[0].file.path) in REAL_AXIAL)


@pytest.mark.parametrize("path", REAL_AXIAL)
def test_air_around_real_patients_is_air(shared_data, path):
    import pydicom
    file = shared_data / "dicom" / path
    series, = [one for one in scan(file.parent) if one.slices[0].file.path.name == file.name]
    hu = SimpleITK.GetArrayFromImage(read_series(series)[0])[0].astype(int)
    padding, intercept = REAL_AXIAL[path]
    stored = pydicom.dcmread(file).pixel_array.astype(int)
    outside = stored == padding
    assert outside.mean() > 0.2 and (hu[outside] == -1024).all()
    np.testing.assert_array_equal(hu[~outside], stored[~outside] + intercept)
    # Air: inside the circle, away from the patient and the table.
    dense = binary_dilation(hu > -700, iterations=3)
    regions, _ = label(dense)
    body = binary_fill_holes(regions == np.bincount(regions.ravel())[1:].argmax() + 1)
    air = ~outside & ~body & ~dense
    assert air.sum() > 2000 and abs(np.median(hu[air]) + 1000) <= 50
    assert abs(hu[air].mean() + 1000) <= 50


def test_the_sample_files_of_nccid_are_no_ct(shared_data):
    found = {one.slices[0].file.path.name: check_series(one, min_slices=1)
             for one in scan(shared_data / "nccid_schema")}
    assert sorted(found.values()) == ["modality DX, not CT", "modality OT, not CT"]
