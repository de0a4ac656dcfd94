"""Voxel sizes that cannot be right are refused with the likely cause; legal units are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage.io import imsave

from nnunet_synth.data.raw_images import read_image, read_segmentation
from nnunet_synth.data.voxel_size import check_voxel_size
from nnunet_synth.errors import UserError
from tests.makers.nifti import write_nifti

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
MM = (5.0, 0.8, 0.7)                    # z, y, x
METRE, MILLIMETRE, MICRON = 1, 2, 3


def read(file: Path, reader: type) -> list[float]:
    """Spacing in mm."""
    read_segmentation(file, reader())
    return read_image([file], reader())[1]["spacing"]


@pytest.mark.parametrize("unit", [0, MILLIMETRE, MILLIMETRE + 8, 4])        # unknown, mm, mm and s, no code at all
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_millimetres_are_millimetres(tmp_path: Path, unit: int, reader: type) -> None:
    np.testing.assert_allclose(read(write_nifti(tmp_path / "a.nii.gz", VOXELS, xyzt_units=unit), reader), MM, rtol=1e-6)


@pytest.mark.parametrize("unit, factor", [(METRE, 1e-3), (MICRON, 1e3)])
def test_other_units_with_their_own_numbers_are_legal(tmp_path: Path, unit: int, factor: float) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", VOXELS, [step * factor for step in MM[::-1]], xyzt_units=unit)
    np.testing.assert_allclose(read(file, SimpleITKIO), MM, rtol=1e-6)
    with pytest.raises(UserError, match=r"voxels of 0.7 x 0.8 x 5 mm, given in m.*reader of this dataset takes for "
                                        r"millimetres: write them in millimetres"):
        read(file, NibabelIO)           # it does not mind the unit: 0.0007 or 700 mm


@pytest.mark.parametrize("unit, message", [
    (METRE, r"a.nii.gz has voxels of 5000 x 800 x 700 mm: its header says that lengths are in metres \(xyzt_units 1\), "
            r"but its numbers look like millimetres: set xyzt_units to 2, millimetres"),
    (MICRON, r"a.nii.gz has voxels of 0.005 x 0.0008 x 0.0007 mm: its header says that lengths are in microns")])
def test_other_units_with_millimetres_are_refused(tmp_path: Path, unit: int, message: str) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", VOXELS, xyzt_units=unit)
    with pytest.raises(UserError, match=message):
        read(file, SimpleITKIO)
    np.testing.assert_allclose(read(file, NibabelIO), MM, rtol=1e-6)        # right, by not minding the unit


def test_microscopic_voxels_in_microns(tmp_path: Path) -> None:
    """25 µm; nibabel would take it for 25 mm, which is a size, too."""
    file = write_nifti(tmp_path / "a.nii.gz", VOXELS, (25, 25, 25), xyzt_units=MICRON)
    np.testing.assert_allclose(read(file, SimpleITKIO), [0.025] * 3, rtol=1e-6)
    with pytest.raises(UserError, match="voxels of 0.025 x 0.025 x 0.025 mm, given in microns"):
        read(file, NibabelIO)


@pytest.mark.parametrize("spacing, message", [
    ((700, 800, 5000), r"700 mm, which no scan has \(0.005 to 100 mm\): correct its header \(are its numbers microns"),
    ((0.0007, 0.0008, 0.005), r"are its numbers metres instead of millimetres\?\)"),
    ((0.7, 0.8, 1e-6), "correct its header$"), ((0.7, 0.8, 5000), "correct its header$")])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_impossible_sizes_in_any_format(tmp_path: Path, spacing: tuple[float, ...], message: str, ending: str) -> None:
    image = SimpleITK.GetImageFromArray(VOXELS)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(tmp_path / f"a{ending}"))
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / f"a{ending}", SimpleITKIO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", [(0.01, 0.01, 0.01), (0.7, 0.7, 60), (5.3, 5.3, 3.3), (1, 1, 1)])
def test_micro_ct_sparse_slices_and_pet_pass(spacing: tuple[float, ...]) -> None:
    check_voxel_size("a.nii.gz", spacing, (9, 9, 9))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_has_no_distance(axis: int) -> None:
    spacing, shape = [0.7] * 3, [9] * 3
    spacing[axis], shape[axis] = 699.3, 1           # nnU-Net's 999 times the pixels
    check_voxel_size("a.nii.gz", spacing, shape)
    spacing[axis - 1] = 699.3
    with pytest.raises(UserError, match="a.nii.gz has voxels of .*699.3"):
        check_voxel_size("a.nii.gz", spacing, shape)


def test_slices_and_pictures_pass(tmp_path: Path) -> None:
    read_image([write_nifti(tmp_path / "a.nii.gz", VOXELS[..., 0])], SimpleITKIO())
    imsave(tmp_path / "a_0000.png", np.zeros((8, 9), np.uint8), check_contrast=False)
    read_image([tmp_path / "a_0000.png"], NaturalImage2DIO())
    with pytest.raises(UserError, match="in metres"):
        read_image([write_nifti(tmp_path / "b.nii.gz", VOXELS[..., 0], xyzt_units=METRE)], SimpleITKIO())


def test_colours_in_a_volume_are_told(tmp_path: Path) -> None:
    """nnU-Net takes the slices of it for channels."""
    image = SimpleITK.GetImageFromArray(np.zeros((3, 8, 9, 3), np.uint8), isVector=True)
    for name in ("a.nii.gz", "a.mha"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        with pytest.raises(UserError, match=f"{name} holds several values a voxel"):
            read_image([tmp_path / name], SimpleITKIO())
