import numpy as np
import pytest
from numpy.random import SeedSequence

from nnunet_synth.data.chest_anatomy import (
    body_columns,
    bone_behind,
    heart_shift,
    is_heart_on_the_right,
    is_spine_in_front,
    spine_column,
)
from nnunet_synth.data.phantom import PhantomCase, PhantomSettings, draw_case

LEFT, RIGHT = 1, 2


@pytest.fixture(scope="module", params=range(4))
def case(request) -> PhantomCase:
    return draw_case(SeedSequence([request.param, 0, 0]), PhantomSettings(96, 16))


def lungs(case: PhantomCase) -> tuple[np.ndarray, np.ndarray]:
    return case.layout == LEFT, case.layout == RIGHT


def test_the_spine_is_found_near_the_middle_of_the_lungs_and_not_by_a_lung(case):
    rows, columns = (np.flatnonzero(case.layout.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    first_row, millimetres = int(rows.mean()), case.spacing[2]
    spine = spine_column(case.image, case.spacing, first_row)
    assert abs(spine - columns.mean()) * millimetres < 12
    white = np.where(case.layout == LEFT, 30, case.image)
    assert spine_column(white, case.spacing, first_row) == pytest.approx(spine, abs=2)
    without_bone = np.minimum(case.image, 100)
    assert spine_column(without_bone, case.spacing, first_row) is None


def test_the_body_is_as_wide_as_it_is_and_a_table_is_not(case):
    first, last = body_columns(case.image)
    assert 280 < (last - first) * case.spacing[2] < 350                   # the phantom's bodies: 2 x 145 to 170 mm
    with_table = case.image.copy()
    with_table[:, -4:] = 0
    assert body_columns(with_table) == (first, last)
    assert body_columns(np.full((2, 8, 16), -1000.0)) == (0, 15)


def test_a_mirrored_chest_has_its_heart_on_the_right(case):
    left, right = lungs(case)
    assert heart_shift(left, right) * case.spacing[2] > 6
    assert not is_heart_on_the_right(left, right, case.spacing[2])
    mirrored = right[:, :, ::-1], left[:, :, ::-1]                      # by the axes, left is what was right
    assert is_heart_on_the_right(*mirrored, case.spacing[2])
    assert heart_shift(*mirrored) == pytest.approx(-heart_shift(left, right))


def test_a_turned_chest_has_its_spine_in_front(case):
    assert not is_spine_in_front(case.image, case.layout)
    assert is_spine_in_front(case.image[:, ::-1], case.layout[:, ::-1])


def test_nothing_is_said_without_lungs_or_without_bone(case):
    nothing = np.zeros(case.layout.shape, bool)
    left, right = lungs(case)
    assert heart_shift(nothing, nothing) is None and heart_shift(left, nothing) is None
    assert not is_heart_on_the_right(nothing, right, 1.0)
    assert not is_spine_in_front(case.image[:, ::-1], nothing)
    assert not is_spine_in_front(np.minimum(case.image[:, ::-1], 100), case.layout[:, ::-1])


def test_real_hearts_and_a_real_spine(shared_data):
    import SimpleITK

    from nnunet_synth.data.lung_threshold import find_lungs
    mirrored = 0
    files = sorted((shared_data / "covid19_20_lungs").glob("*.nii.gz"))
    for file in files:                                                  # 1 is left here, by the masks' geometry
        image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(file)), "LPS")
        mask = SimpleITK.GetArrayFromImage(image)[:, ::4, ::4]
        column_mm = image.GetSpacing()[0] * 4
        assert not is_heart_on_the_right(mask == LEFT, mask == RIGHT, column_mm), file.name
        mirrored += is_heart_on_the_right((mask == RIGHT)[..., ::-1], (mask == LEFT)[..., ::-1], column_mm)
    assert len(files) == 10 and mirrored == 6                           # the others' hearts lie in the middle
    image = SimpleITK.ReadImage(str(shared_data / "lung_ct_volume" / "lung1_image.nrrd"))
    hu = SimpleITK.GetArrayFromImage(image)[::3, ::2, ::2].astype(np.float32)
    found = find_lungs(hu, (15, 1.14, 1.14), "SPL")
    assert bone_behind(hu, found) > 0.7 and is_spine_in_front(hu[:, ::-1], found[:, ::-1])
    assert heart_shift(found == LEFT, found == RIGHT) * 1.14 > 12
