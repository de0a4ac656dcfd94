"""The edited mask, and what of an edit lies in the body."""

import numpy as np
import pytest

from nnunet_synth.editing.lesion_edits import Circle, LesionEdit
from nnunet_synth.editing.resynthesis import cut_to_body, edit_mask_slice
from nnunet_synth.errors import UserError


def test_each_region_gets_its_gray_value_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    mask = 50.0 * rng.integers(0, 6, (20, 20))
    regions = np.zeros((20, 20), int)
    regions[2:6, 3:9], regions[10:12, 10:12] = 1, 2
    before = mask.copy()
    edited = edit_mask_slice(mask, regions, [150.0, 0.0])
    assert (edited[regions == 1] == 150).all() and (edited[regions == 2] == 0).all()
    assert np.array_equal(edited[regions == 0], before[regions == 0]) and np.array_equal(mask, before)


def test_a_removed_lesion_takes_what_surrounds_it():
    mask = np.full((30, 30), 200.0)
    mask[5:25, 5:25] = 50           # lung
    mask[10:14, 10:14] = 150        # its lesion
    regions = np.zeros((30, 30), int)
    regions[10:14, 10:14] = 1
    regions[14:18, 10:14] = 2       # another edit beside it is no surroundings
    assert (edit_mask_slice(mask, regions, [None, 150.0])[10:14, 10:14] == 50).all()


def body(shape=(3, 40, 40)):
    """A body with a lung in air, and a bright table below."""
    hu = np.full(shape, -1000.0)
    hu[:, 8:30, 5:35] = 40
    hu[:, 12:24, 10:30] = -850
    hu[:, 36:38, 5:35] = 100
    return hu


@pytest.mark.parametrize("slice_axis", [0, 1])
def test_an_edit_is_cut_at_the_skin(slice_axis):
    hu = np.moveaxis(body(), 0, slice_axis)
    region = np.zeros((3, 40, 40), bool)
    region[1, :, 15:20] = True
    inside = np.moveaxis(cut_to_body(hu, np.moveaxis(region, 0, slice_axis), LesionEdit(Circle((0, 0, 0), 1), 0.0),
                                     slice_axis), slice_axis, 0)
    expected = np.zeros_like(region)
    expected[1, 8:30, 15:20] = True         # neither air nor table; the lung is inside
    assert np.array_equal(inside, expected)


@pytest.mark.parametrize("rows", [slice(0, 6), slice(36, 38)])
def test_an_edit_outside_the_body_is_refused(rows):
    region = np.zeros((3, 40, 40), bool)
    region[1, rows, 10:12] = True
    with pytest.raises(UserError, match="circle 10 3 1 lies outside the body"):
        cut_to_body(body(), region, LesionEdit(Circle((10, 3, 1), 2), -600.0), 0)
    with pytest.raises(UserError, match="outside the body"):
        cut_to_body(np.full((3, 40, 40), -1000.0), region, LesionEdit(Circle((10, 3, 1), 2), -600.0), 0)
