"""Files whose pixels are not what their header says never reach a decoder."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import JPEGLossless, RLELossless

from nnunet_synth.dataset_conversion.dicom_checks import check_series
from nnunet_synth.dataset_conversion.dicom_pixels import check_pixels, decodable
from nnunet_synth.dataset_conversion.dicom_series import scan_series
from nnunet_synth.dataset_conversion.dicom_voxels import read_series
from nnunet_synth.dataset_conversion.sources import list_files
from nnunet_synth.errors import UserError
from tests.makers.dicom import CTSeries, as_raw_datasets, random_hu, uid

NUM_BYTES = 12 * 10 * 2


@pytest.fixture
def no_decoder(monkeypatch):
    """Whatever is decoded fails the test."""
    def decode(*args, **kwargs):
        raise AssertionError("a broken file reached the decoder")
    monkeypatch.setattr(SimpleITK, "ReadImage", decode)


def read(folder: Path) -> np.ndarray:
    series, = scan_series(list_files(folder))
    assert check_series(series) is None
    return SimpleITK.GetArrayFromImage(read_series(series)[0])


def shortened(num_bytes: int):
    """Slice 5 with `num_bytes` of pixels, and an element that says so: what an export leaves that was interrupted."""
    def edit(dataset, index):
        if index == 5:
            dataset.PixelData = dataset.PixelData[:num_bytes]
    return edit


@pytest.mark.parametrize("num_bytes", [NUM_BYTES - 2, NUM_BYTES // 2, 0])
@pytest.mark.parametrize("is_raw", [False, True])
def test_missing_pixels_are_told_before_decoding(tmp_path, no_decoder, num_bytes, is_raw):
    files = CTSeries(random_hu(), edit=shortened(num_bytes)).write(tmp_path)
    if is_raw:
        as_raw_datasets(files)
    series, = scan_series(list_files(tmp_path))
    told = f"{num_bytes} of {NUM_BYTES} bytes of its pixels are there" if num_bytes else "it holds no pixels"
    with pytest.raises(UserError, match=f"{files[5].name} is truncated or corrupt: {told}"):
        with decodable(next(one.file for one in series.slices if one.uid == uid("series", 5))):
            raise AssertionError("the file was lent")


@pytest.mark.parametrize("missing", [1, NUM_BYTES - 1, NUM_BYTES])
def test_a_file_cut_at_its_end_is_told_before_decoding(tmp_path, no_decoder, missing):
    files = CTSeries(random_hu()).write(tmp_path)
    for file in files:
        file.write_bytes(file.read_bytes()[:-missing])
    with pytest.raises(UserError, match=r"\.dcm is truncated or corrupt: ((239|1) of 240 bytes|it holds no pixels)"):
        read(tmp_path)


def test_in_an_archive_too(tmp_path, no_decoder):
    CTSeries(random_hu(), edit=lambda dataset, index: shortened(100)(dataset, 5)).write(tmp_path / "scans")
    shutil.make_archive(str(tmp_path / "scans"), "zip", tmp_path / "scans")
    series, = scan_series(list_files(tmp_path / "scans.zip"))
    with pytest.raises(UserError, match=r"scans\.zip:\S+\.dcm is truncated or corrupt: 100 of 240 bytes"):
        read_series(series)


def test_a_whole_second_picture_is_told(tmp_path, no_decoder):
    CTSeries(random_hu(), edit=lambda one, index: setattr(one, "PixelData", one.PixelData * 2)).write(tmp_path)
    with pytest.raises(UserError, match="holds 480 bytes of pixels, its header says 240"):
        read(tmp_path)


def test_a_few_bytes_behind_the_pixels_do_no_harm(tmp_path):
    series = CTSeries(random_hu(), edit=lambda one, index: setattr(one, "PixelData", one.PixelData + bytes(6)))
    series.write(tmp_path)
    np.testing.assert_array_equal(read(tmp_path), series.hu)


# -- compressed --------------------------------------------------------------------------------------------------------


def item(content: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + len(content).to_bytes(4, "little") + content


def compressed(frame: bytes, syntax: str = JPEGLossless, ends: bool = True) -> pydicom.Dataset:
    """A slice with these bytes as its compressed picture, as pydicom reads it."""
    one = CTSeries(random_hu((1, 12, 10))).dataset(0)
    one.file_meta.TransferSyntaxUID = syntax
    one.PixelData = item(b"") + item(frame)
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    stream = io.BytesIO()
    one.save_as(stream, enforce_file_format=True)
    content = stream.getvalue()
    return pydicom.dcmread(io.BytesIO(content if ends else content[:-12]))


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize(("dataset", "message"), [
    (lambda: compressed(b"\xff\xd8" + bytes(30)), "compressed picture has no end"),
    (lambda: compressed(b"\xff\xd8" + bytes(30) + b"\xff\xd9", ends=False), "it holds no pixels"),
])
def test_incomplete_compressed_pixels(dataset, message):
    with pytest.raises(UserError, match=message):
        check_pixels(dataset())


def test_complete_compressed_pixels():
    check_pixels(compressed(b"\xff\xd8" + bytes(30) + b"\xff\xd9"))
    check_pixels(compressed(b"\xff\xd8" + bytes(30) + b"\xff\xd9\0"))
    check_pixels(compressed(bytes(64), RLELossless))


def test_plain_pixels_called_compressed():
    one = CTSeries(random_hu((1, 12, 10))).dataset(0)
    stream = io.BytesIO()
    one.save_as(stream, enforce_file_format=True)
    read_again = pydicom.dcmread(io.BytesIO(stream.getvalue()))
    read_again.file_meta.TransferSyntaxUID = JPEGLossless
    with pytest.raises(UserError, match="not stored as its transfer syntax says"):
        check_pixels(read_again)


# -- bits --------------------------------------------------------------------------------------------------------------


def with_bits(allocated: int, stored: int, high: int, signed: int):
    """Values that just fill `stored` bits (or 12), the highest at `high`; the lowest of them; as HU from -1024 on."""
    count = 1 << min(stored, 12)
    above = np.random.default_rng(1).permutation(np.arange(24 * 120) % count).reshape(24, 12, 10)
    low = -count // 2 if signed else 0
    values = above + low

    def edit(dataset, index):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
        dataset.PixelRepresentation = signed
        in_place = (values[index] & ((1 << stored) - 1)) << max(0, high + 1 - stored)
        dataset.PixelData = in_place.astype(f"<u{allocated // 8}").tobytes()
    return edit, low, above - 1024


@pytest.mark.parametrize("bits", [(16, 16, 15), (16, 15, 14), (16, 13, 12), (16, 12, 11), (16, 10, 9), (16, 8, 7),
                                  (8, 8, 7), (32, 32, 31)])
@pytest.mark.parametrize("signed", [0, 1])
def test_bits_that_are_read_give_the_right_hu(tmp_path, bits, signed):
    edit, low, hu = with_bits(*bits, signed)
    CTSeries(random_hu(), edit=edit, intercept=lambda index: -1024 - low).write(tmp_path)
    np.testing.assert_array_equal(read(tmp_path), hu)


@pytest.mark.parametrize("bits", [(16, 12, 15), (16, 12, 13), (16, 12, 7), (16, 16, 11), (16, 10, 15), (8, 7, 7)])
@pytest.mark.parametrize("signed", [0, 1])
def test_values_that_may_lie_elsewhere_are_refused(tmp_path, bits, signed):
    """12 bits stored up to bit 15 come out 16 times too high."""
    edit, _, _ = with_bits(*bits, signed)
    CTSeries(random_hu(), edit=edit).write(tmp_path)
    series, = scan_series(list_files(tmp_path))
    assert re.match(rf"{bits[1]} of {bits[0]} bits stored, the highest of them bit {bits[2]} and not {bits[1] - 1}",
                    check_series(series))


@pytest.mark.parametrize("bits", [(32, 16, 15), (32, 24, 23), (8, 7, 6)])
def test_other_bits_are_refused(tmp_path, bits):
    edit, _, _ = with_bits(*bits, 0)
    CTSeries(random_hu(), edit=edit).write(tmp_path)
    series, = scan_series(list_files(tmp_path))
    assert f"{bits[1]} of {bits[0]} bits stored, which cannot be read" in check_series(series)


@pytest.mark.parametrize("keyword", ["BitsStored", "HighBit", "PixelRepresentation"])
def test_bits_that_the_header_does_not_tell_are_refused(tmp_path, keyword):
    CTSeries(random_hu(), edit=lambda one, index: delattr(one, keyword)).write(tmp_path)
    series, = scan_series(list_files(tmp_path))
    assert "does not say how the pixels' bits lie" in check_series(series)


@pytest.mark.parametrize(("signed", "value"), [(0, 5000), (0, 63536), (1, -3024)])
def test_values_beyond_the_stored_bits_are_refused(tmp_path, no_decoder, signed, value):
    """GDCM makes 1072 of -3024 in 12 bits: air becomes tissue."""
    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, signed
        values = np.zeros((12, 10), int)
        values[3, 4] = value
        dataset.PixelData = (values & 0xFFFF).astype("<u2").tobytes()
    CTSeries(random_hu(), edit=edit).write(tmp_path)
    with pytest.raises(UserError, match="holds values of more than the 12 bits"):
        read(tmp_path)


def test_a_repeated_sign_above_the_stored_bits_is_none(tmp_path):
    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit = 12, 11
    series = CTSeries(np.clip(random_hu(), -1024, 2047), edit=edit, intercept=lambda index: 0)
    series.write(tmp_path)
    np.testing.assert_array_equal(read(tmp_path), series.hu)


# -- what stops ITK ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [0, -5, 17, ""])
def test_a_declared_spacing_is_never_needed(tmp_path, spacing):
    series = CTSeries(random_hu(), edit=lambda one, index: setattr(one, "SpacingBetweenSlices", spacing))
    series.write(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    np.testing.assert_array_equal(read(tmp_path), series.hu)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_header_that_pydicom_cannot_convert_is_one_line(tmp_path, no_decoder):
    """An unknown type of value shows only when the value is asked for."""
    for file in CTSeries(random_hu()).write(tmp_path):
        content = file.read_bytes()
        assert content.count(b"\x28\x00\x02\x00US") == 1          # SamplesPerPixel
        file.write_bytes(content.replace(b"\x28\x00\x02\x00US", b"\x28\x00\x02\x00Ue"))
    with pytest.raises(UserError, match=r"\.dcm is truncated or corrupt: copy it again \(NotImplementedError\)"):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_header_text_stays_one_line(tmp_path):
    for file in CTSeries(random_hu()).write(tmp_path):
        file.write_bytes(file.read_bytes().replace(b"MONOCHROME2", b"MONO\nCHRO\x1bE"))
    series, = scan_series(list_files(tmp_path))
    assert check_series(series) == "photometric interpretation MONO CHRO E, not MONOCHROME2"
