import gzip
import os

import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage.io import imsave

from nnunet_synth.data.raw_images import check_name, check_raw_image, list_cases, read_image, read_segmentation
from nnunet_synth.errors import UserError


def test_cases_are_listed_by_nnunets_rule(tmp_path):
    from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder
    names = ["b_0001.nii.gz", "b_0000.nii.gz", "a_1_0000.nii.gz", "a_10_0000.nii.gz", "a_0000_0000.nii.gz",
             "ä b_0000.nii.gz"]
    for name in names:
        (tmp_path / name).touch()
    cases = list_cases(tmp_path, ".nii.gz")
    identifiers = get_identifiers_from_splitted_dataset_folder(str(tmp_path), ".nii.gz").tolist()
    assert list(cases) == identifiers
    for case, files in cases.items():
        assert [str(file) for file in files] == create_paths_fn(str(tmp_path), sorted(names), ".nii.gz", case)


def test_what_is_no_case_is_not_listed(tmp_path):
    for name in ("._a_0000.nii.gz", "a_000x.nii.gz", "a_0000.nii", "a_0000_nii_gz", "_0000.nii.gz", "a.nii.gz"):
        (tmp_path / name).touch()
    assert list_cases(tmp_path, ".nii.gz") == {} and list_cases(tmp_path / "missing", ".nii.gz") == {}


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(-1000, 1000, (5, 24, 20)).astype(np.int16)


def save(array, path, compressed=True):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 5.0))
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_an_intact_volume_is_read_as_nnunet_reads_it(tmp_path, volume, ending):
    file = save(volume, tmp_path / f"case{ending}")
    image, properties = read_image([file], SimpleITKIO())
    np.testing.assert_array_equal(image, volume[None])
    np.testing.assert_allclose(properties["spacing"], [5.0, 0.8, 0.7])
    segmentation, _ = read_segmentation(file, SimpleITKIO())
    np.testing.assert_array_equal(segmentation, volume[None])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0, 0.05, 0.5, 0.98])
def test_a_truncated_volume_is_refused(tmp_path, volume, ending, kept):
    file = save(volume, tmp_path / f"case{ending}")
    content = file.read_bytes()
    file.write_bytes(content[:int(len(content) * kept)])
    for read in (lambda: read_image([file], SimpleITKIO()), lambda: read_segmentation(file, SimpleITKIO())):
        with pytest.raises(UserError, match=r"case.*copy it again") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_nifti_that_was_truncated_before_it_was_compressed_is_refused(tmp_path, volume):
    file = save(volume, tmp_path / "case.nii.gz")
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
    with pytest.raises(UserError, match="truncated"):
        read_image([file], SimpleITKIO())


@pytest.mark.parametrize("kept", [0, 0.1, 0.6])
def test_a_truncated_png_is_refused(tmp_path, kept):
    file = tmp_path / "case_0000.png"
    imsave(file, np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8), check_contrast=False)
    content = file.read_bytes()
    file.write_bytes(content[:int(len(content) * kept)])
    with pytest.raises(UserError, match="copy it again"):
        read_image([file], NaturalImage2DIO())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_nan_and_infinity_are_refused_and_counted(tmp_path, volume, bad, dtype, ending):
    volume = volume.astype(dtype)
    volume[2, 3, 4] = volume[1, 1, 1] = bad
    with pytest.raises(UserError, match="2 voxels"):
        read_image([save(volume, tmp_path / f"case{ending}")], SimpleITKIO())


def test_infinities_of_both_signs_are_found():
    with pytest.raises(UserError, match="2 voxels"):
        check_raw_image(np.array([[[[np.inf, -np.inf, 0.0]]]], np.float32), "x")
    check_raw_image(np.full((1, 1, 8, 8), np.finfo(np.float32).max), "x")
    with pytest.raises(UserError, match="no voxels"):
        check_raw_image(np.zeros((1, 0, 8, 8), np.float32), "x")


def test_channels_of_different_shape_are_refused_in_one_line(tmp_path, volume):
    files = [save(volume, tmp_path / "case_0000.nii.gz"), save(volume[1:], tmp_path / "case_0001.nii.gz")]
    with pytest.raises(UserError, match="same shape and spacing") as caught:
        read_image(files, SimpleITKIO())
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.nii.gz does not exist"):
        read_image([tmp_path / "nothing.nii.gz"], SimpleITKIO())


def test_a_colour_picture_or_fractions_are_no_label_map(tmp_path, volume):
    colours = tmp_path / "label.png"
    imsave(colours, np.zeros((8, 9, 3), np.uint8), check_contrast=False)
    with pytest.raises(UserError, match="3 channels"):
        read_segmentation(colours, NaturalImage2DIO())
    with pytest.raises(UserError, match="not integers"):
        read_segmentation(save(volume.astype(np.float32) + 0.5, tmp_path / "label.nii.gz"), SimpleITKIO())


def test_a_name_that_is_no_text_is_refused_before_any_reader_sees_it(tmp_path, monkeypatch):
    """Latin-1 from an old server. SimpleITK would end the process: what is here never reaches a reader."""
    name = os.fsdecode(b"scan_\xff_0000.nii.gz")
    try:
        (tmp_path / name).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system knows Unicode only")

    class Reader:
        read_images = read_seg = staticmethod(lambda files: pytest.fail("was read"))

    for read in (lambda: read_image([tmp_path / name], Reader()), lambda: read_segmentation(tmp_path / name, Reader())):
        with pytest.raises(UserError, match="name that is no UTF-8 text.*rename it"):
            read()
    check_name(tmp_path / "ä → b_0000.nii.gz")
