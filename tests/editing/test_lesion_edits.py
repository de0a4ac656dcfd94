"""What an edit may say, and the disc that it draws."""

import json

import numpy as np
import pytest

from nnunet_synth.editing.lesion_edits import Circle, LesionEdit, circle_edit, edit_from_json, mask_edit, read_edits
from nnunet_synth.errors import UserError


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_a_circle_is_a_disc_of_that_radius_in_mm(slice_axis):
    shape, spacing, centre, radius = (9, 20, 24), (3.0, 0.8, 1.5), (11, 9, 4), 4.9
    drawn = Circle(centre, radius).draw(shape, spacing, slice_axis)
    for index in np.ndindex(shape):
        offsets = [(position - middle) * step for position, middle, step
                   in zip(index, centre[::-1], spacing, strict=True)]
        expected = offsets[slice_axis] == 0 and sum(offset ** 2 for offset in offsets) <= radius ** 2
        assert drawn[index] == expected, index
    assert drawn.sum() > 1


def test_a_centre_outside_the_image():
    with pytest.raises(UserError, match=r"circle 24 0 0 lies outside the image.*23 19 8 \(x y z\)"):
        Circle((24, 0, 0), 3).draw((9, 20, 24), (1, 1, 1), 0)


def test_the_command_lines_forms_mean_the_same_as_json(tmp_path):
    file = tmp_path / "edits.json"
    file.write_text(json.dumps([{"circle": [1, 2, 3], "radius": 4, "hu": -600},
                                {"mask": "m.nii.gz", "hu": "healthy", "label": "infection"}]))
    first, second = read_edits(file)
    assert first == circle_edit(["1", "2", "3", "4", "-600"]) == LesionEdit(Circle((1, 2, 3), 4.0), -600.0)
    assert second.intensity is None and second.label == "infection"
    assert second.shape == mask_edit("m.nii.gz", "healthy").shape


@pytest.mark.parametrize(("entry", "message"), [
    ({"circel": [1, 2, 3], "radius": 2, "hu": 0}, "unknown key 'circel' in an edit; did you mean circle"),
    ({"circle": [1, 2, 3], "hu": 0}, 'has "circle" and "radius"'),
    ({"circle": [1, 2, 3], "radius": 2}, 'and "hu"'),
    ({"circle": [1, 2, 3], "mask": "m", "radius": 2, "hu": 0}, 'or "mask"'),
    ({"mask": "m", "radius": 2, "hu": 0}, 'or "mask"'),
    ({"circle": [1, 2], "radius": 2, "hu": 0}, "three voxel indices"),
    ({"circle": [1, 2, 0.5], "radius": 2, "hu": 0}, "whole numbers"),
    ({"circle": [1, 2, 3], "radius": -2, "hu": 0}, "must be above 0, got -2"),
    ({"circle": [1, 2, 3], "radius": 2, "hu": "dense"}, "hu of an edit must be a number or healthy, got 'dense'"),
    ({"circle": [1, 2, 3], "radius": True, "hu": 0}, "radius of an edit must be a number"),
    ({"circle": [1, 2, 3], "radius": 2, "hu": float("nan")}, "must be a number"),
    ({"circle": [1, 2, 3], "radius": 2, "hu": 0, "label": 1}, "must be the name of a label"),
    ([1, 2], "must have the keys"),
])
def test_mistakes(entry, message):
    with pytest.raises(UserError, match=message) as error:
        edit_from_json(entry)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{}", "[]", "not json"])
def test_files_that_are_no_list(tmp_path, content):
    file = tmp_path / "edits.json"
    file.write_text(content)
    with pytest.raises(UserError, match=str(file)):
        read_edits(file)
