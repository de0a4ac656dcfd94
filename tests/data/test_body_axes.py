from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_synth.data.body_axes import axes_of, canonical_order, from_canonical, to_canonical


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_axes_follow_the_patient_for_every_reader(tmp_path: Path, reader, flips):
    """A bright voxel at the patient's left, posterior, superior end must lie at the end that the axes name."""
    image = SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    image.SetDirection(np.diag(flips).astype(float).ravel().tolist())
    corner = [size - 1 if flip > 0 else 0 for size, flip in zip(image.GetSize(), flips, strict=True)]
    image[corner] = 1000
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii.gz"))
    voxels, properties = reader().read_images([str(tmp_path / "a.nii.gz")])
    axes, has_geometry = axes_of(properties)
    assert has_geometry and [code in pair for code, pair in zip(axes, ("SI", "PA", "LR"), strict=True)] == [True] * 3
    position = np.argwhere(voxels[0] == 1000)[0]
    for code, index, size in zip(axes, position, voxels[0].shape, strict=True):
        assert index == (size - 1 if code in "LPS" else 0)


def test_oblique_and_permuted_axes():
    angle = 0.5
    oblique = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert axes_of({"sitk_stuff": {"direction": oblique.ravel()}})[0] == "SPL"
    sagittal = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])                # x → posterior, y → inferior, z → left
    assert axes_of({"sitk_stuff": {"direction": sagittal.ravel()}})[0] == "LIP"
    assert axes_of({"spacing": (999, 1, 1)}, "LP") == ("SLP", False)


def test_to_canonical_and_back_for_all_48_axes():
    """Voxels hold their own position in the body: superior, posterior, left."""
    canonical = np.arange(24).reshape(2, 3, 4)
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            axes = "".join("SPL"[body] if not flipped else "IAR"[body]
                           for body, flipped in zip(order, flips, strict=True))
            array = np.flip(canonical.transpose(order), tuple(np.flatnonzero(flips)))
            np.testing.assert_array_equal(to_canonical(array, axes), canonical)
            np.testing.assert_array_equal(from_canonical(canonical, axes), array)
            assert [axes[axis] in line for axis, line in zip(canonical_order(axes), ("SI", "PA", "LR"), strict=True)] \
                == [True] * 3


@pytest.mark.parametrize("axes", ["SPX", "SP", "SSL", "SAP", "SPLL"])
def test_axes_must_be_three_directions(axes):
    with pytest.raises(ValueError, match="axes"):
        canonical_order(axes)
