from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_synth.data.label_rounding import rounded_labels
from nnunet_synth.data.raw_images import read_segmentation
from nnunet_synth.errors import UserError
from tests.makers.nifti import write_nifti

LABELS = np.random.default_rng(0).integers(0, 3, (3, 4, 5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_integers_are_left_alone(dtype: type) -> None:
    values = LABELS.astype(dtype)
    found, repair = rounded_labels(values, "a")
    assert repair == "" and found.dtype == dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [0.99999, 1.0000002, 0.9996])
def test_what_a_header_made_of_integers_is_rounded(dtype: type, factor: float) -> None:
    found, repair = rounded_labels((LABELS * factor).astype(dtype), "a")
    np.testing.assert_array_equal(found, LABELS)
    assert found.dtype == dtype and repair == "values within 0.001 of an integer rounded"


@pytest.mark.parametrize("value", [0.998, 0.5, -0.01, np.nan, np.inf])
def test_what_is_no_integer_is_refused(value: float) -> None:
    values = LABELS.astype(np.float32)
    values[1, 2, 3] = value
    with pytest.raises(UserError, match=rf"a holds values that are not integers, e.g. {value:g}: .*scl_slope"):
        rounded_labels(values, "a")


def test_a_scaled_label_map_is_read_as_what_was_meant(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """0, 1, 2 saved as 16-bit integers over their whole range."""
    image = nibabel.Nifti1Image(LABELS.astype(np.float64), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    stored = SimpleITKIO().read_seg(str(tmp_path / "a.nii.gz"))[0]
    assert 0 < np.abs(stored - np.rint(stored)).max() < 1e-4
    found, _ = read_segmentation(tmp_path / "a.nii.gz", SimpleITKIO())
    np.testing.assert_array_equal(found[0], LABELS.transpose(2, 1, 0))
    assert "a.nii.gz: values within 0.001 of an integer rounded" in capsys.readouterr().err


def test_a_byte_scaled_label_map_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", (LABELS * 127).clip(0, 255).astype(np.uint8), scl_slope=2 / 255)
    with pytest.raises(UserError, match=r"e.g. 1.99216: .*its header scales it .*: round its values"):
        read_segmentation(file, SimpleITKIO())
