"""Volumes are read as nnU-Net reads them, every voxel keeps value and place, and a header that is not right is told."""

from __future__ import annotations

import gzip
import os
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.dataset_conversion.volumes import compact, orientation, read_volume, to_lps, turned, value_counts
from nnunet_synth.errors import UserError
from tests.dataset_conversion.test_sources import write_zip
from tests.makers.nifti import write_nifti

RNG = np.random.default_rng(0)
ARRAYS = {
    "labels": RNG.integers(0, 4, (3, 7, 5)).astype(np.uint8),
    "negative": RNG.integers(-1024, 3072, (3, 7, 5)).astype(np.int16),
    "whole range": np.array([[[-2**15, 2**15 - 1, 0]]], np.int16),
    "wide": np.array([[[0, 1 << 20, 1 << 20]]], np.int32),
    "fractions": np.array([[[0.5, 0.5, 2.0]]], np.float32),
    "picture": RNG.integers(0, 255, (7, 5)).astype(np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_value_counts(name):
    counted = value_counts(SimpleITK.GetImageFromArray(ARRAYS[name]))
    expected = {value: int((ARRAYS[name] == value).sum()) for value in sorted(set(ARRAYS[name].ravel().tolist()))}
    assert counted == expected and list(counted) == list(expected)
    assert {type(value) for value in counted} == {float if name == "fractions" else int}


# -- reading and turning -----------------------------------------------------------------------------------------------


HU = RNG.permutation(np.arange(-1024, -1024 + 3 * 4 * 5)).astype(np.int16).reshape(3, 4, 5)         # x, y, z
ORDERS = ["".join(letters) for axes in permutations(("LR", "PA", "SI")) for letters in product(*axes)]
LPS_OF = dict(zip("LRPASI", np.vstack([side * np.eye(3)[axis] for axis in range(3) for side in (1, -1)]), strict=True))


def affine(order: str = "RAS", spacing: tuple[float, ...] = (0.7, 0.8, 5.0)) -> np.ndarray:
    """NIfTI's (RAS) affine of an array whose indices grow to the directions of `order`."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([-1, -1, 1]) @ np.column_stack([LPS_OF[letter] for letter in order]) * spacing
    matrix[:3, 3] = 10.5, -20.25, 300
    return matrix


def save(path: Path, array: np.ndarray, matrix: np.ndarray | None = None, sform: int = 1, qform: int = 1,
         other: np.ndarray | None = None) -> SourceFile:
    """A NIfTI whose sform is `matrix` and whose qform is `other` (the same if not given), with these codes."""
    matrix = affine() if matrix is None else matrix
    image = nibabel.Nifti1Image(array, matrix if sform or qform else None)      # it would set a code itself
    image.header.set_xyzt_units("mm")
    image.header.set_qform(matrix if other is None else other, 1, strip_shears=True)
    image.header.set_sform(matrix, sform)
    image.header["qform_code"] = qform
    nibabel.save(image, path)
    return SourceFile(path.parent, path.name)


def array_of(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_turning_moves_no_voxel(tmp_path, order):
    stored = read_volume(save(tmp_path / "a.nii.gz", HU, affine(order)))
    assert orientation(stored) == order
    assert turned(stored) == (() if order == "LPS" else (f"turned from {order} to LPS",))
    image = to_lps(stored)
    assert orientation(image) == "LPS" and turned(to_lps(image)) == turned(image)
    place = {int(HU[index]): np.array((*index, 1)) for index in np.ndindex(*HU.shape)}
    array = array_of(image)
    for index in np.ndindex(*array.shape):
        expected = np.diag([-1, -1, 1, 1]) @ affine(order) @ place.pop(int(array[index]))
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), expected[:3], atol=1e-4)
    assert not place


def test_a_volume_in_an_archive_is_read_as_on_disk(tmp_path):
    file = save(tmp_path / "a.nii.gz", HU)
    packed = SourceFile(write_zip(tmp_path / "x.zip", {"deep/a.nii.gz": file.read_bytes()}), "deep/a.nii.gz")
    np.testing.assert_array_equal(array_of(read_volume(packed)), HU)
    write_zip(tmp_path / "x.zip", {"deep/a.nii.gz": file.read_bytes()[:150]})
    with pytest.raises(UserError, match=r"x\.zip:deep/a\.nii\.gz is truncated"):
        read_volume(packed)


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path):
    image = read_volume(save(tmp_path / "a.nii.gz", HU[..., None], affine("LAS")))
    np.testing.assert_array_equal(array_of(image), HU)
    assert orientation(image) == "LAS" and image.GetSpacing() == pytest.approx((0.7, 0.8, 5))


@pytest.mark.parametrize("unit, factor", [(1, 1e-3), (3, 1e3)])
def test_metres_and_microns_become_millimetres(tmp_path, unit, factor):
    """So do the places in the header: nibabel leaves them, and nothing is said to be elsewhere."""
    file = save(tmp_path / "a.nii", HU, np.diag([factor] * 3 + [1]) @ affine("LPS"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[123] = unit
    (tmp_path / "a.nii").write_bytes(content)
    image = read_volume(file)
    assert turned(image) == ()
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.8, 5), rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), np.diag([-1, -1, 1]) @ affine("LPS")[:3, 3], rtol=1e-6)


@pytest.mark.parametrize("unit, name", [(1, "metres"), (3, "microns")])
def test_millimetres_called_otherwise_are_refused(tmp_path, unit, name):
    write_nifti(tmp_path / "a.nii.gz", HU, xyzt_units=unit)
    with pytest.raises(UserError, match=rf"a.nii.gz has voxels of .* mm: its header says that lengths are in {name}"):
        read_volume(SourceFile(tmp_path, "a.nii.gz"))


def test_an_intercept_without_a_slope_is_refused(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", HU, scl_slope=0, scl_inter=-1024)
    with pytest.raises(UserError, match="which means no scaling: readers differ by 1024"):
        read_volume(SourceFile(tmp_path, "a.nii.gz"))


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "slope", "intercept"), [
    (np.uint16, 1, -1024), (np.int16, 2, 0), (np.float64, 1, 0), (np.int32, 1, 0), (np.float32, 1, -1024)])
def test_rescaled_values_become_int16_without_a_rounding(tmp_path, stored, slope, intercept):
    raw = np.arange(60).reshape(3, 4, 5) * 50
    file = save(tmp_path / "a.nii", raw.astype(stored))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    image = compact(read_volume(file))
    assert image.GetPixelID() == SimpleITK.sitkInt16
    np.testing.assert_array_equal(array_of(image), raw * slope + intercept)


@pytest.mark.parametrize(("values", "dtype"), [
    ([0, 255], np.uint8), ([-32768, 32767], np.int16), ([0, 32768], np.float32), ([0.5, 1.0], np.float32),
    ([-32769.0, 0], np.float32), ([0, 40000], np.float32)])
def test_compact_never_changes_a_value(values, dtype):
    source = np.array(values, np.float64 if dtype == np.float32 else np.int32 if dtype == np.int16 else dtype)
    image = compact(SimpleITK.GetImageFromArray(np.resize(source, (2, 2, 2))))
    result = SimpleITK.GetArrayFromImage(image)
    assert result.dtype == dtype and set(result.ravel().tolist()) == {float(value) for value in values}


# -- what is no volume -------------------------------------------------------------------------------------------------


def with_voxel(value: float) -> np.ndarray:
    array = HU.astype(np.float32)
    array[1, 2, 3] = value
    return array


def write_rgb(path: Path) -> SourceFile:
    colours = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(colours, str(path))
    return SourceFile(path.parent, path.name)


def cut(file: SourceFile, size: int) -> SourceFile:
    os.truncate(file.root / file.name, size)
    return file


def short_of_voxels(file: SourceFile) -> SourceFile:
    path = file.root / file.name
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-20]))
    return file


def text(path: Path) -> SourceFile:
    path.write_text("<html>404</html>")
    return SourceFile(path.parent, path.name)


NO_VOLUMES = {
    "missing": (lambda path: SourceFile(path.parent, path.name), "does not exist"),
    "zero bytes": (lambda path: cut(save(path, HU), 0), "empty"),
    "truncated gzip": (lambda path: cut(save(path, HU), 150), "truncated"),
    "fewer voxels": (lambda path: short_of_voxels(save(path, HU)), "truncated: 100 of 120 bytes"),
    "no image": (text, "no NIfTI"),
    "no image of another format": (lambda path: text(path.with_name("a.nrrd")), "corrupt or no image"),
    "NaN": (lambda path: save(path, with_voxel(np.nan)), "1 voxels that are NaN or infinite"),
    "infinity": (lambda path: save(path, with_voxel(-np.inf)), "NaN or infinite"),
    "4-D": (lambda path: save(path, np.stack([HU, HU], axis=-1)), "4-D of size (3, 4, 5, 2)"),
    "2-D": (lambda path: save(path, HU[..., 0]), "2-D of size"),
    "colours": (write_rgb, "3 values a voxel"),
}


@pytest.mark.parametrize("name", NO_VOLUMES)
def test_what_is_no_volume(tmp_path, name):
    write, reason = NO_VOLUMES[name]
    file = write(tmp_path / "a.nii.gz")
    with pytest.raises(UserError) as caught:
        read_volume(file)
    assert reason in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


# -- headers that are not right ----------------------------------------------------------------------------------------


def sheared(degrees: float) -> np.ndarray:
    """The slices are stacked along a line that is not perpendicular to them, as with a tilted gantry."""
    matrix = affine("LPS")
    matrix[:3, 2] = np.array([0, -np.sin(np.radians(degrees)), np.cos(np.radians(degrees))]) * 5
    return matrix


@pytest.mark.parametrize("degrees", [0.02, 0.05, 0.09])
def test_axes_off_by_a_rounding_are_made_perpendicular_and_reported(tmp_path, degrees):
    file = save(tmp_path / "a.nii.gz", HU, sheared(degrees), qform=0)
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(str(file))                                  # which is why nnU-Net cannot read it
    image = read_volume(file)
    repair, = turned(image)
    assert repair == f"axes that were {degrees:.3f} degrees off the right angle made perpendicular"
    assert "ITK_NIFTI_SFORM_PERMISSIVE" not in os.environ
    axes = np.reshape(image.GetDirection(), (3, 3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-7)
    np.testing.assert_array_equal(array_of(image), HU)
    assert image.GetSpacing() == pytest.approx((0.7, 0.8, 5), rel=1e-4)
    places = np.diag([-1, -1, 1, 1]) @ sheared(degrees) @ [2, 3, 4, 1]
    assert np.linalg.norm(np.array(image.TransformIndexToPhysicalPoint((2, 3, 4))) - places[:3]) < 0.05     # mm


@pytest.mark.parametrize("degrees", [0.2, 1, 15])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_tilted_gantry_is_refused(tmp_path, degrees, ending):
    if ending == ".mha":
        file = tilted_mha(tmp_path, degrees)
    else:
        file = save(tmp_path / "a.nii.gz", HU, sheared(degrees), qform=0)
    with pytest.raises(UserError, match=rf"not perpendicular \(off by {degrees:.2f} degrees, a tilted gantry"):
        read_volume(file)


def tilted_mha(folder: Path, degrees: float) -> SourceFile:
    image = SimpleITK.GetImageFromArray(HU.transpose(2, 1, 0))
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    image.SetDirection([1, 0, 0, 0, 1, sine, 0, 0, cosine])
    SimpleITK.WriteImage(image, str(folder / "a.mha"))
    return SourceFile(folder, "a.mha")


def test_other_formats_are_made_perpendicular_too(tmp_path):
    image = read_volume(tilted_mha(tmp_path, 0.05))
    assert turned(image) == ("axes that were 0.050 degrees off the right angle made perpendicular",)
    axes = np.reshape(image.GetDirection(), (3, 3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(axes) == pytest.approx(1)
    np.testing.assert_array_equal(array_of(image), HU)


@pytest.mark.parametrize(("sform", "qform", "ignored"), [(1, 1, "qform"), (1, 2, "qform"), (1, 4, "qform"),
                                                         (2, 1, "sform"), (4, 1, "sform"), (2, 2, "sform")])
def test_where_sform_and_qform_differ_the_one_of_nnunet_counts(tmp_path, sform, qform, ignored):
    other = affine("RAS")
    other[0, 3] += 12.5
    file = save(tmp_path / "a.nii.gz", HU, affine("RAS"), sform, qform, other)
    image = read_volume(file)
    assert turned(image) == (f"the {ignored} of the header puts voxels up to 12.5 mm elsewhere: ignored, as nnU-Net "
                             "does", "turned from RAS to LPS")

    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    properties = SimpleITKIO().read_images([str(file)])[1]["sitk_stuff"]
    assert (image.GetOrigin(), image.GetDirection()) == (properties["origin"], properties["direction"])
    counting = other if ignored == "sform" else affine("RAS")
    assert image.GetOrigin()[0] == pytest.approx(-counting[0, 3])


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 0), (0, 4)])
def test_one_form_is_enough(tmp_path, sform, qform):
    assert turned(read_volume(save(tmp_path / "a.nii.gz", HU, affine("LPS"), sform, qform, affine("LPS")))) == ()


def test_a_header_without_an_orientation(tmp_path):
    image = read_volume(save(tmp_path / "a.nii.gz", HU, sform=0, qform=0))
    assert turned(image) == ("no orientation in the header: axes taken as LPS, as nnU-Net does",)


def test_what_was_repaired_is_not_written_into_the_image(tmp_path):
    image = read_volume(save(tmp_path / "a.nii.gz", HU, sform=0, qform=0))
    SimpleITK.WriteImage(compact(to_lps(image)), str(tmp_path / "b.nii"))
    assert b"orientation" not in (tmp_path / "b.nii").read_bytes()
