"""What lies in one plane is measured in it: 2D files of any pixel size and volumes of one slice, as one mask."""

import math

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.commands.evaluate import evaluate
from nnunet_synth.evaluation.case_gallery import CaseFiles, case_galleries
from nnunet_synth.evaluation.segmentation import reader_of
from tests.reference import segmentation as reference

SIDE = 64
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


def masks():
    """A lesion, predicted three pixels away and with a spot of one pixel: [Y, X]."""
    truth, prediction = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    truth[20:30, 20:34], prediction[23:33, 20:34], prediction[50, 50] = 1, 1, 1
    return prediction, truth


def write(path, array, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    SimpleITK.WriteImage(image, str(path))


def scores(folder, ending, arrays, spacing, **options):
    for name, array in zip(("p", "t"), arrays, strict=True):
        write(folder / name / f"a{ending}", array, spacing)
    results = evaluate(folder / "p", folder / "t", ["1"], **options)
    return results, results["cases"][0]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("pixel", [0.5, 0.7, 0.902, 1.5])
def test_2d_files_of_any_pixel_size(tmp_path, ending, pixel):
    """999 times 0.7 mm is no slice thickness, and above 0.9 mm a millimetre stays one."""
    spacing = (pixel, pixel * 1.2)
    results, row = scores(tmp_path, ending, masks(), spacing, tolerance=1.0)
    seen = tuple(mask.astype(bool) for mask in masks())
    assert results["unit"] == "mm" and results["single_slices"] == ["a"]
    assert row["NSD"] == pytest.approx(reference.surface_dice(*seen, spacing, 1.0), abs=1e-6)
    assert row["HD95"] == pytest.approx(reference.hausdorff(*seen, spacing, 95), abs=1e-5)


def test_a_missed_case_gets_the_diagonal_of_the_picture(tmp_path):
    truth = np.pad(masks()[1], ((0, 256 - SIDE), (0, 256 - SIDE)))
    _, row = scores(tmp_path, ".nii.gz", (np.zeros_like(truth), truth), (0.7, 0.7))
    assert row["HD95"] == pytest.approx(0.7 * math.hypot(256, 256))       # 253.4 mm; as a slab of 0.7 m: 743.8


@pytest.mark.parametrize("area, predicted", [(0.4, 2), (0.6, 1)])
def test_the_smallest_lesion_is_an_area(tmp_path, area, predicted):
    """The spot of one pixel has 0.49 mm²."""
    _, row = scores(tmp_path, ".nii.gz", masks(), (0.7, 0.7), min_lesion_volume=area)
    assert row["predicted_lesions"] == predicted


@pytest.mark.parametrize("axis", range(3))
def test_a_volume_of_one_slice_is_a_picture(tmp_path, axis):
    """Its flat faces are where the scan ends, not the lesion."""
    spacing = [0.7, 0.8]
    _, flat = scores(tmp_path / "flat", ".nii.gz", masks(), tuple(spacing))
    spacing.insert(axis, 5.0)
    results, row = scores(tmp_path / "volume", ".nii.gz", [np.expand_dims(mask, axis) for mask in masks()],
                          tuple(spacing))
    assert results["single_slices"] == ["a"] and results["unit"] == "mm"
    assert {name: row[name] for name in ("NSD", "HD95", "lesion_F1")} == pytest.approx(
        {name: flat[name] for name in ("NSD", "HD95", "lesion_F1")})


def test_slices_among_volumes_are_told(tmp_path, capsys):
    for name, mask in zip(("p", "t"), masks(), strict=True):
        write(tmp_path / name / "one.nii.gz", mask[None], (5.0, 0.7, 0.7))
        write(tmp_path / name / "several.nii.gz", np.stack([mask, mask]), (5.0, 0.7, 0.7))
    assert evaluate(tmp_path / "p", tmp_path / "t")["single_slices"] == ["one"]
    assert "1 of 2 cases is a single slice, measured in its plane (one)" in capsys.readouterr().out


@pytest.mark.parametrize("axis", range(3))
def test_a_gallery_of_one_slice(tmp_path, axis):
    spacing = (1.0, 1.0, 1.0)
    for name, mask in zip(("p", "t"), masks(), strict=True):
        write(tmp_path / name / "a.nii.gz", np.expand_dims(mask, axis), spacing)
    files = CaseFiles([tmp_path / "t" / "a.nii.gz"], tmp_path / "t" / "a.nii.gz", {"m": tmp_path / "p" / "a.nii.gz"})
    gallery, = case_galleries({"m": {"a": 0.5}}, "m", lambda case: files, reader_of(".nii.gz", files.truth))
    assert len(gallery.pictures) == 2


def test_3_columns_are_no_colours(tmp_path):
    """A volume [Z, Y, 3] read as a picture would be red, green and blue."""
    mask = np.zeros((4, 6, 3), np.uint8)
    mask[1:3, 1:4, 1] = 1
    for ending in ENDINGS[2:]:
        results, row = scores(tmp_path / ending, ending, (mask, mask), (5.0, 0.7, 0.7))
        assert row["DSC"] == 1 and results["single_slices"] == []
