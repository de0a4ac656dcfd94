"""Headers that readers take in different ways are refused; all others are read as the standard says, by both."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_synth.data.nifti_header import NiftiHeader
from nnunet_synth.data.raw_images import check_file, read_image, read_segmentation
from nnunet_synth.errors import UserError
from tests.makers.nifti import write_nifti

STORED = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
READERS = (SimpleITKIO, NibabelIO)


@pytest.mark.parametrize("version, order", [(1, "<"), (1, ">"), (2, "<"), (2, ">")])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_layout_of_a_header(tmp_path: Path, version: int, order: str, dtype: type) -> None:
    import nibabel
    kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    header = kind(endianness=order)
    header.set_data_dtype(dtype)
    header.set_data_shape((3, 4, 1))
    header.set_zooms((0.5, 0.25, 3))
    header.set_xyzt_units("micron")
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 2, -1024, 600
    found = NiftiHeader.parse(header.binaryblock + bytes(200))
    assert (found.version, found.offset, found.num_bytes) == (version, 600, 12 * np.dtype(dtype).itemsize)
    assert (found.slope, found.intercept, found.pixdim, found.unit) == (2, -1024, (0.5, 0.25), 3)
    assert found.stated_voxel_size() == pytest.approx((0.0005, 0.00025))
    assert found.dtype == np.dtype(dtype).newbyteorder(order)


def test_what_is_no_nifti() -> None:
    good = bytearray(348)
    good[:4] = (348).to_bytes(4, "little")
    good[40], good[70] = 3, 4
    assert NiftiHeader.parse(bytes(good)) is not None
    assert NiftiHeader.parse(b"patient") is None and NiftiHeader.parse(bytes(540)) is None
    for place, value in ((40, 0), (40, 8), (70, 3), (108, b"\0\0\xc0\x7f")):    # axes, type of voxels, an offset of NaN
        bad = bytearray(good)
        bad[place:place + (4 if isinstance(value, bytes) else 1)] = value if isinstance(value, bytes) else [value]
        assert NiftiHeader.parse(bytes(bad)) is None


def test_mutated_headers_end_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = write_nifti(tmp_path / "a.nii", STORED)
    content = file.read_bytes()
    refused = 0
    for _ in range(2000):
        mutant = bytearray(content)
        for place in rng.integers(0, 348, rng.integers(1, 6)):
            mutant[place] = rng.integers(0, 256)
        file.write_bytes(mutant)
        try:
            check_file(file)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith(f"{file} ")
    assert 100 < refused < 1900


@pytest.mark.parametrize("slope, intercept, expected", [
    (1, 0, STORED), (2, -1024, STORED * 2.0 - 1024), (0.5, 0, STORED / 2), (-1, 0, -STORED),
    (0, 0, STORED), (math.nan, 0, STORED), (math.nan, math.nan, STORED), (0, math.nan, STORED),      # "no scaling"
])
@pytest.mark.parametrize("reader", READERS)
def test_scales_are_applied_as_the_standard_says(tmp_path: Path, slope: float, intercept: float, expected: np.ndarray,
                                                 reader: type) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", STORED, scl_slope=slope, scl_inter=intercept)
    np.testing.assert_array_equal(read_image([file], reader())[0][0], expected.transpose(2, 1, 0))


@pytest.mark.parametrize("slope, intercept, message", [
    (0, -1024, r"scl_inter -1024 .* scl_slope 0, which means no scaling: readers differ by 1024 .* Set scl_slope to 1"),
    (math.nan, -1024, "scl_slope nan, which means no scaling"),
    (1, math.nan, "by which no voxel has a value"), (2, math.inf, "by which no voxel has a value"),
    (math.inf, 0, "by which no voxel has a value"), (-math.inf, 0, "by which no voxel has a value"),
    (1e-30, 0, "scl_slope 1e-30 in its header, which some readers ignore"),
    (-1e-17, 5, "which some readers ignore"),
])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_scales_that_readers_take_differently_are_refused(tmp_path: Path, slope: float, intercept: float, message: str,
                                                          dtype: type) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", STORED.astype(dtype), scl_slope=slope, scl_inter=intercept)
    for reader in READERS:
        for read in (lambda: read_image([file], reader()), lambda: read_segmentation(file, reader())):  # noqa: B023
            with pytest.raises(UserError, match=rf"a\.nii\.gz has .*{message}") as caught:
                read()
            assert "\n" not in str(caught.value)


def test_readers_do_differ(tmp_path: Path) -> None:
    """Why they are refused; fails when SimpleITK follows the standard."""
    values = {}
    for slope, intercept in ((0, -1024), (1e-30, 0)):
        file = write_nifti(tmp_path / "a.nii", STORED, scl_slope=slope, scl_inter=intercept)
        values[slope] = [float(reader().read_images([str(file)])[0].max()) for reader in READERS]
    assert values[0] == [59 - 1024, 59] and values[1e-30] == [59, pytest.approx(59e-30)]


@pytest.mark.parametrize("pixdim", [0, math.nan, math.inf])
def test_a_voxel_size_that_is_no_number_is_refused(tmp_path: Path, pixdim: float) -> None:
    """Readers put 1 mm in its place."""
    file = write_nifti(tmp_path / "a.nii.gz", STORED, pixdim=[1, pixdim, 0.8, 5, 0, 0, 0, 0])
    with pytest.raises(UserError, match=rf"a.nii.gz says that its voxels measure {pixdim:g} x 0.8 x 5 mm: set pixdim"):
        read_image([file], SimpleITKIO())


def test_axes_without_a_second_voxel_need_no_size(tmp_path: Path) -> None:
    check_file(write_nifti(tmp_path / "a.nii", STORED[..., :1], pixdim=[1, 0.7, 0.8, 0, 0, 0, 0, 0]))
    check_file(write_nifti(tmp_path / "b.nii", STORED[..., 0], pixdim=[1, 0.7, 0.8, 0, 0, 0, 0, 0]))


def test_a_negative_size_is_its_amount(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii", STORED, pixdim=[1, -0.7, 0.8, 5, 0, 0, 0, 0])
    for reader in READERS:
        np.testing.assert_allclose(read_image([file], reader())[1]["spacing"], [5, 0.8, 0.7], rtol=1e-6)


def test_a_header_is_found_in_what_is_compressed(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", STORED, xyzt_units=1)
    assert NiftiHeader.read(file).unit == 1
    file.write_bytes(gzip.compress(b"patient"))
    assert NiftiHeader.read(file) is None and NiftiHeader.read(tmp_path / "b.nii") is None
