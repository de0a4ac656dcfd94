"""Gray values of conditions: the paper's for three classes, and its ranges when they are randomised."""

import pytest
import torch

from nnunet_synth.synthesizers.gray_conditions import draw_grays, gray_ranges, gray_values, paint_classes
from tests.reference import cosingan as reference


def test_three_classes_have_the_published_values_and_ranges():
    assert gray_values(3) == [0, 128, 255]
    assert gray_ranges(3) == [reference.randomised_range(name) for name in ("background", "lung", "infection")]


@pytest.mark.parametrize("number", [2, 3, 4, 7, 12])
def test_any_number_of_classes_stays_apart(number):
    values, ranges = gray_values(number), gray_ranges(number)
    assert values[0] == 0 and values[-1] == 255 and values == sorted(values)
    for value, (low, high) in zip(values, ranges, strict=True):
        assert 0 <= low <= value <= high <= 255
    assert all(high < low for (_, high), (low, _) in zip(ranges, ranges[1:], strict=False)), "ranges overlap"


def test_randomised_values_fill_their_ranges_and_differ_at_each_scale():
    drawn = torch.stack([draw_grays(9, 3, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert drawn.shape == (200, 9, 3)
    for number, (low, high) in enumerate(gray_ranges(3)):
        values = drawn[..., number]
        assert values.min() >= low and values.max() <= high
        assert values.min() < low + 0.05 * (high - low) and values.max() > high - 0.05 * (high - low)
    assert all(len(one[:, number].unique()) == 9 for one in drawn[:20] for number in range(3))
    assert torch.equal(drawn[3], draw_grays(9, 3, torch.Generator().manual_seed(3)))


def test_painting():
    semantic = torch.tensor([[[0, 1], [2, 1]]])
    image = paint_classes(semantic, torch.tensor([0.0, 127.5, 255.0]))
    assert image.tolist() == [[[[-1, 0], [1, 0]]]]
