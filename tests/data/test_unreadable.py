"""A file that its reader refuses for its name, packing or version is not called damaged."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from nnunet_synth.data.raw_images import read_image, read_segmentation
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.dataset_conversion.volumes import read_volume
from nnunet_synth.errors import UserError
from tests.makers.nifti import write_nifti

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


@pytest.mark.parametrize("name, is_compressed, message", [
    ("a.nii", True, "is compressed, though its name does not say so: rename it to a.nii.gz"),
    ("a.Nii.gz", True, "ends in .Nii.gz, which SimpleITK does not know: rename it to a.nii.gz"),
    ("a.nii.GZ", True, "ends in .nii.GZ, which SimpleITK does not know: rename it to a.nii.gz"),
    ("a.Nii", False, "ends in .Nii, which SimpleITK does not know: rename it to a.nii"),
    ("a.MHA", False, "ends in .MHA, which SimpleITK does not know: rename it to a.mha"),
])
def test_a_wrong_ending_is_to_be_renamed(tmp_path: Path, name: str, is_compressed: bool, message: str) -> None:
    file = tmp_path / name
    if name.endswith(".MHA"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(tmp_path / "a.mha"))
        (tmp_path / "a.mha").rename(file)
    else:
        write_nifti(file, VOXELS, is_compressed=is_compressed)
    for read in (lambda: read_image([file], SimpleITKIO()), lambda: read_segmentation(file, SimpleITKIO()),
                 lambda: read_volume(SourceFile(tmp_path, name))):
        with pytest.raises(UserError, match=f"^{re.escape(f'{file} {message}')}$"):
            read()
    file.rename(tmp_path / message.split()[-1])
    assert read_image([tmp_path / message.split()[-1]], SimpleITKIO())[0].size == 60


@pytest.mark.parametrize("name", ["A.NII", "A.NII.GZ"])
def test_capital_endings_are_read(tmp_path: Path, name: str) -> None:
    file = write_nifti(tmp_path / name, VOXELS)
    for reader in (SimpleITKIO, NibabelIO):
        assert read_image([file], reader())[0].max() == 59


def test_what_is_not_compressed_though_its_name_says_so(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", VOXELS, is_compressed=False)
    assert read_image([file], SimpleITKIO())[0].max() == 59         # it looks at the content
    with pytest.raises(UserError, match="is not compressed, .*: rename it to a.nii, or compress it with gzip"):
        read_image([file], NibabelIO())


def test_nifti_2_is_to_be_converted_where_it_cannot_be_read(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", VOXELS, version=2)
    image, properties = read_image([file], NibabelIO())
    np.testing.assert_array_equal(image[0], VOXELS.transpose(2, 1, 0))
    for read in (lambda: read_image([file], SimpleITKIO()), lambda: read_volume(SourceFile(tmp_path, file.name))):
        with pytest.raises(UserError, match="gz is NIfTI-2, which SimpleITK does not read: convert it to NIfTI-1"):
            read()
    nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load(file)), tmp_path / "b.nii.gz")      # as the message says
    converted, geometry = read_image([tmp_path / "b.nii.gz"], SimpleITKIO())
    np.testing.assert_array_equal(converted, image)
    np.testing.assert_allclose(geometry["spacing"], properties["spacing"], rtol=1e-6)


def test_nifti_2_is_checked_as_nifti_1_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which means no scaling"):
        read_image([write_nifti(tmp_path / "a.nii", VOXELS, version=2, scl_slope=0, scl_inter=5)], NibabelIO())
    file = write_nifti(tmp_path / "a.nii", VOXELS, version=2)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="a.nii is truncated"):
        read_image([file], NibabelIO())


def test_what_nnunet_does_not_support_is_not_called_damaged(tmp_path: Path) -> None:
    Image.new("LA", (9, 8)).save(tmp_path / "a_0000.png")
    with pytest.raises(UserError, match="a_0000.png cannot be used: If image has three dimensions") as caught:
        read_image([tmp_path / "a_0000.png"], NaturalImage2DIO())
    assert "copy it again" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be used: only 3d images"):
        read_image([write_nifti(tmp_path / "b.nii", VOXELS[..., 0])], NibabelIO())
