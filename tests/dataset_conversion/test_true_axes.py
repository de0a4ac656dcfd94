import itertools

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.data.phantom import PhantomSettings, draw_case
from nnunet_synth.dataset_conversion.true_axes import find_true_axes
from nnunet_synth.dataset_conversion.volumes import to_lps

FLIPS = list(itertools.product((False, True), repeat=3))


def image_of(array: np.ndarray, spacing: tuple[float, ...]) -> SimpleITK.Image:
    """[z, y, x], whatever way the patient lies in it, with an LPS header."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(step) for step in spacing[::-1]])
    image.SetOrigin((-185.0, -170.5, 12.25))
    return image


def stored(array: np.ndarray, spacing: tuple[float, ...], is_transposed: bool, flips: tuple[bool, ...],
           ) -> SimpleITK.Image:
    """An LPS array [z, y, x] as somebody saved it: axes reversed, then rows and columns exchanged."""
    array = np.flip(array, [axis for axis in range(3) if flips[axis]])
    if is_transposed:
        array, spacing = array.transpose(0, 2, 1), (spacing[0], spacing[2], spacing[1])
    return image_of(array, spacing)


def is_turned(is_transposed: bool, flips: tuple[bool, ...]) -> bool:
    """A rotation, not a mirror image."""
    return (is_transposed + sum(flips)) % 2 == 0


@pytest.fixture(scope="module")
def chest():
    """A phantom whose rows and columns differ in number, so that an exchange cannot hide."""
    case = draw_case(np.random.SeedSequence([9, 0]), PhantomSettings(96, 24, 12.0))
    return case.image[:, 6:-4], case.spacing


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("flips", FLIPS)
def test_every_way_to_store_a_chest_is_put_right(chest, is_transposed, flips):
    array, spacing = chest
    image = stored(array, spacing, is_transposed, flips)
    axes = find_true_axes(image)
    right = axes.put_right(image)
    if not is_transposed and flips == (False, False, True):     # a mirror image and nothing else: told, not changed
        assert axes.repairs == ("NOT repaired: heart and aorta lie on the right",)
        return
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(right), array)
    assert right.GetSpacing() == spacing[::-1] and right.GetOrigin() == image.GetOrigin()
    assert len(axes.repairs) == is_transposed + sum(flips)


@pytest.mark.parametrize("is_transposed, flips", [
    (False, (False, False, False)), (True, (True, True, True)), (False, (True, True, False)),
])
def test_a_real_chest(shared_data, is_transposed, flips):
    lung1 = to_lps(SimpleITK.ReadImage(str(shared_data / "lung_ct_volume" / "lung1_image.nrrd")))
    array = SimpleITK.GetArrayFromImage(lung1)
    assert is_turned(is_transposed, flips)
    image = stored(array, lung1.GetSpacing()[::-1], is_transposed, flips)
    axes = find_true_axes(image)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(axes.put_right(image)), array)
    assert not axes.finding.doubts


def test_an_array_without_lungs_keeps_its_header():
    water = image_of(np.zeros((12, 40, 44), np.int16), (8.0, 4.0, 4.0))
    axes = find_true_axes(water)
    assert axes.repairs == ("NOT repaired: no lungs were found, so the header is trusted",)
    assert axes.put_right(water).GetSize() == water.GetSize()
