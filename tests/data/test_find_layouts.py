import numpy as np
import pytest
from numpy.random import SeedSequence

from nnunet_synth.data.find_layouts import Found, summarise
from nnunet_synth.data.phantom import PhantomSettings, draw_case

STRAIGHT = {"direction": np.eye(3).ravel()}


def found(layout: np.ndarray, spacing: tuple[float, ...], direction: np.ndarray | None = None) -> Found:
    return Found(layout, {"spacing": spacing, "sitk_stuff": STRAIGHT if direction is None else
                          {"direction": direction.ravel()}}, None)


@pytest.mark.parametrize("left, right, doubt", [
    (2.0, 2.4, ""), (0.0, 0.0, "nothing found"), (0.2, 0.3, "little lung"), (6.0, 6.0, "much lung"),
    (0.1, 2.5, "one lung is missing or small"),
])
def test_implausible_volumes_are_flagged(left, right, doubt):
    layout = np.zeros((132, 10, 10), np.uint8)                                  # 1000 voxels = 1 litre
    inside = layout[1:131].reshape(-1)
    inside[:round(1000 * left)], inside[-round(1000 * right) or 13000:] = 1, 2
    layout[1:131] = inside.reshape(130, 10, 10)
    report = summarise("a", "written", found(layout, (10, 10, 10)))
    assert (report.amounts, report.unit) == ({"left_lung": left, "right_lung": right}, "l")
    assert [text for text in report.doubts if "slice" not in text] == ([doubt] if doubt else [])


def test_a_small_volume_says_whether_the_scan_ends_within_the_lungs():
    layout = np.zeros((10, 20, 20), np.uint8)
    layout[2:8, 5:15, 12:18], layout[2:8, 5:15, 2:8] = 1, 2
    whole = summarise("a", "written", found(layout, (5, 5, 5)))
    assert whole.doubts == ("little lung",)
    for part in (layout[3:], layout[:6]):
        assert summarise("a", "written", found(part, (5, 5, 5))).doubts == \
            ("little lung", "the first or last slice cuts the lungs off")
    lungs_in_full = summarise("a", "written", found(layout[3:6], (60, 10, 10)))
    assert lungs_in_full.doubts == ()                                           # cut, but there is enough of it


def test_amounts_are_named_and_other_anatomy_is_not_judged():
    layout = np.zeros((4, 10, 10), np.uint8)
    layout[:, :5], layout[:, 5:7] = 1, 2
    swapped = summarise("a", "kept", found(layout, (10, 10, 10)), {"right_lung": 1, "left_lung": 2})
    assert swapped.amounts == {"right_lung": 0.2, "left_lung": 0.08} and swapped.status == "kept"
    liver = summarise("a", "written", found(layout == 1, (10, 10, 10)), {"liver": 1})
    assert liver.amounts == {"liver": 0.2} and liver.doubts == ()


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, 1, 1]), np.diag([1, -1, -1])])
def test_a_heart_on_the_right_is_flagged_whatever_the_axes(direction):
    case = draw_case(SeedSequence([0, 0, 0]), PhantomSettings(64, 16))
    array = case.layout[tuple(slice(None, None, int(sign)) for sign in np.diag(direction)[::-1])]
    spacing = (16.0, *case.spacing[1:])                                         # enough litres for an adult
    assert summarise("a", "written", found(array, spacing, direction)).doubts == ()
    mirrored = direction @ np.diag([-1, 1, 1])                                  # a header that mirrors the patient,
    sides = np.array([0, 2, 1], np.uint8)[array]                                # as the lungs are then found
    assert summarise("a", "written", found(sides, spacing, mirrored)).doubts == \
        ("the heart is on the right: are left and right swapped?",)
