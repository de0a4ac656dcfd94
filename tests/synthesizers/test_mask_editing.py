"""Edits of unsupervised masks against the slow reference, and the gray values that lesions are drawn with."""

from collections import Counter

import numpy as np
import pytest
import torch

from nnunet_synth.synthesizers.mask_editing import (
    LesionParts,
    LesionValues,
    count_healthy,
    edit_mask,
    edit_mask_with,
    find_lesion_parts,
    find_removed,
    insert,
    organ_level,
    organ_values,
)
from tests.reference import um2i as reference

STEP = 50.0


def values_of(gray: dict[int, list[float]], organs: dict[int, set[int]], num_organs: int = 2,
              pixels: dict[int, list[int]] | None = None,
              healthy: dict[int, dict[float, int]] | None = None) -> LesionValues:
    """Lesion values with one channel: label → gray values, each of as many pixels as given (default 1); and organ →
    gray value → healthy pixels of it."""
    values = LesionValues(sorted(gray), num_channels=1, num_organs=num_organs)
    parts = []
    for label in sorted(gray):
        counts = (pixels or {}).get(label, [1] * len(gray[label]))
        under = torch.tensor([organ in organs[label] for organ in range(num_organs + 1)])
        parts.append([LesionParts(torch.tensor(gray[label])[:, None], torch.tensor(counts).float(), under)]
                     if gray[label] else [])
    counts = torch.zeros(num_organs + 1, 256, 1, dtype=torch.float64)
    for organ, levels in (healthy or {}).items():
        for level, number in levels.items():
            counts[organ, int(level), 0] = number
    values.fill(parts, [("case", 0)], None if healthy is None else counts)
    return values


def removed_by(mask: torch.Tensor, label: torch.Tensor, layout: torch.Tensor, values: LesionValues,
               step: float) -> torch.Tensor:
    return find_removed(mask, label, layout, values, step,
                        organ_level(mask, layout, label == 0, values.num_organs, step))


def some_masks(seed: int, step: float = STEP) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mask [3, 1, 12, 10], label with 0, 1, 2, 3 and layout with 0, 1, 2, in blocks."""
    rng = np.random.default_rng(seed)

    def blocks(low: int, high: int) -> np.ndarray:
        return rng.integers(low, high, (3, 4, 5)).repeat(3, 1).repeat(2, 2)

    mask = blocks(0, int(255 // step) + 1) * step
    return (torch.from_numpy(mask).float()[:, None], torch.from_numpy(blocks(0, 4) * (blocks(0, 2) > 0)),
            torch.from_numpy(blocks(0, 3)))


# ----------------------------------------------------------------------------------------------------------------------
# The whole edit


@pytest.mark.parametrize("seed", range(6))
def test_the_edit_is_that_of_the_reference(seed: int) -> None:
    """Labels 1 and 2 are known, in organs {1} and {1, 2}; label 3 has never been seen and is left alone. A level of
    label 1 and one of label 2 are commoner in what is healthy."""
    mask, label, layout = some_masks(seed)
    values = values_of({1: [60.0, 110.0, 130.0, 149.0], 2: [190.0, 240.0], 3: []}, {1: {1}, 2: {1, 2}, 3: set()},
                       healthy={1: {20.0: 5, 70.0: 6, 120.0: 1}, 2: {210.0: 30, 20.0: 3, 190.0: 1}})
    shares = {1: {50.0: 0.25, 100.0: 0.75}, 2: {150.0: 0.5, 200.0: 0.5}}
    of_healthy = {1: {0.0: 5 / 12, 50.0: 6 / 12, 100.0: 1 / 12},
                  2: {0.0: 8 / 46, 50.0: 6 / 46, 100.0: 1 / 46, 150.0: 1 / 46, 200.0: 30 / 46}}
    drawn = values.draw(3, torch.Generator().manual_seed(seed))
    edited = edit_mask(mask, label, layout, values, STEP, torch.Generator().manual_seed(seed))
    assert torch.equal(edited, edit_mask_with(mask, label, layout, values, STEP, drawn))
    for n in range(3):
        quantised = {one: reference.quantise(float(drawn[n, row, 0]), STEP) for row, one in enumerate((1, 2))}
        expected = reference.edit(mask[n, 0].numpy(), label[n].numpy(), layout[n].numpy(), quantised,
                                  {1: (50, 100), 2: (150, 200)}, {1: {1}, 2: {1, 2}}, shares, of_healthy)
        np.testing.assert_array_equal(edited[n, 0].numpy(), expected)


def test_inserted_removed_and_untouched() -> None:
    """A lung (50) with a lesion at the left (150): the label asks for one at the right instead."""
    mask = torch.full((1, 1, 10, 20), 200.0)
    layout = torch.zeros(1, 10, 20, dtype=torch.int64)
    layout[:, 2:8, 2:18] = 1
    mask[:, 0, 2:8, 2:18] = 50
    mask[:, 0, 3:6, 3:6] = 150
    mask[:, 0, 6, 15] = 0                   # an airway
    label = torch.zeros_like(layout)
    label[:, 3:7, 12:15] = 1
    values = values_of({1: [120.0, 160.0]}, {1: {1}})
    edited = edit_mask(mask, label, layout, values, STEP, torch.Generator().manual_seed(0))
    expected = mask.clone()
    expected[:, 0, 3:6, 3:6] = 50
    expected[:, 0, 3:7, 12:15] = edited[0, 0, 3, 12]
    assert torch.equal(edited, expected)
    assert edited[0, 0, 3, 12] in (100, 150)
    # Without a layout nothing is known to be lung: lesions are put in, none taken out.
    bare = edit_mask(mask, label, torch.zeros_like(layout), values, STEP, torch.Generator().manual_seed(0))
    expected[:, 0, 3:6, 3:6] = 150
    assert torch.equal(bare, expected)


def test_the_values_stay_quantised_and_the_given_mask_stays_what_it_was() -> None:
    mask, label, layout = some_masks(3, step=12.5)
    before = mask.clone()
    values = values_of({1: list(np.linspace(20.3, 233.7, 9)), 2: [77.7]}, {1: {1}, 2: {2}})
    edited = edit_mask(mask, label, layout, values, 12.5, torch.Generator().manual_seed(1))
    assert torch.equal(mask, before) and edited.data_ptr() != mask.data_ptr()
    assert (edited / 12.5 == (edited / 12.5).round()).all() and edited.min() >= 0 and edited.max() <= 255
    changed = (edited != mask)[:, 0]
    allowed = torch.isin(label, torch.tensor([1, 2])) | removed_by(mask, label, layout, values, 12.5)
    assert changed.any() and not (changed & ~allowed).any()


def test_what_the_batch_holds_beside_it_does_not_matter() -> None:
    mask, label, layout = some_masks(5)
    values = values_of({1: [110.0, 240.0], 2: [160.0]}, {1: {1}, 2: {2}})
    drawn = values.draw(3, torch.Generator().manual_seed(0))
    together = edit_mask_with(mask, label, layout, values, STEP, drawn)
    for n in range(3):
        one = slice(n, n + 1)
        assert torch.equal(edit_mask_with(mask[one], label[one], layout[one], values, STEP, drawn[one]), together[one])
    # The draw of the first image does not depend on how many follow.
    assert torch.equal(values.draw(1, torch.Generator().manual_seed(0)), drawn[:1])


def test_channels_are_drawn_together() -> None:
    """What is bright in one channel is dark in the other: no mixture of two lesions may be painted."""
    values = LesionValues([1], num_channels=2, num_organs=1)
    values.fill([[LesionParts(torch.tensor([[60.0, 220.0], [210.0, 10.0]]), torch.ones(2), torch.tensor([0, 1]) > 0)]],
                [("case", 0)])
    mask, label = torch.zeros(40, 2, 4, 4), torch.zeros(40, 4, 4, dtype=torch.int64)
    label[:, 1:3, 1:3] = 1
    edited = edit_mask(mask, label, torch.ones_like(label), values, STEP, torch.Generator().manual_seed(0))
    assert {tuple(pixel.tolist()) for pixel in edited[:, :, 1, 1]} == {(50.0, 200.0), (200.0, 0.0)}
    # A pixel looks like a lesion only where all its channels do: the second one's are outside 10 … 220.
    pixels = torch.tensor([[60.0, 100.0], [60.0, 0.0], [210.0, 220.0]]).T.reshape(1, 2, 3, 1)
    found = find_removed(pixels, torch.zeros(1, 3, 1).long(), torch.ones(1, 3, 1).long(), values, 0,
                         torch.zeros_like(pixels))
    assert found.flatten().tolist() == [True, False, True]


# ----------------------------------------------------------------------------------------------------------------------
# Painting


def test_insert_paints_each_image_with_its_own_value() -> None:
    mask = torch.zeros(2, 2, 3, 3)
    where = torch.zeros(2, 3, 3, dtype=torch.bool)
    where[0, 0, 0] = where[1, 2, 1] = True
    painted = insert(mask, where, torch.tensor([[50.0, 100.0], [150.0, 200.0]]))
    assert painted[0, :, 0, 0].tolist() == [50, 100] and painted[1, :, 2, 1].tolist() == [150, 200]
    assert painted.sum() == 500 and mask.sum() == 0


def test_organs_most_frequent_value() -> None:
    """The darkest of equals; NaN where nothing is counted; with t = 0 the middle of a gray value."""
    mask = torch.tensor([[0.0, 50, 50, 100], [100, 200, 200, 250]])[None, None]
    layout = torch.tensor([[1, 1, 1, 1], [1, 2, 2, 3]])[None]
    counted = layout != 2
    found = organ_values(mask, layout, counted, 3, STEP)[0, 0]
    assert found[1] == 50 and found[2].isnan() and found[3] == 250 and found[0].isnan()
    assert organ_values(mask + 0.2, layout, counted, 3, 0)[0, 0, 1] == 50.5


def test_an_organ_that_has_nothing_healthy_counts_as_a_whole() -> None:
    mask = torch.tensor([[100.0, 100, 150], [50, 50, 250]])[None, None]
    layout = torch.tensor([[1, 1, 1], [2, 2, 0]])[None]
    is_lesion = torch.tensor([[True, True, True], [False, True, True]])[None]
    level = organ_level(mask, layout, ~is_lesion, 2, STEP)
    assert level[0, 0, 0].tolist() == [100, 100, 100] and level[0, 0, 1, :2].tolist() == [50, 50]


# ----------------------------------------------------------------------------------------------------------------------
# What counts as a lesion that nobody asked for


def lung_with(levels: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mask [1, 1, 4, K], a column a level; no label; all of it lung."""
    mask = torch.tensor(levels).repeat(1, 1, 4, 1)
    return mask, torch.zeros(1, 4, len(levels), dtype=torch.int64), torch.ones(1, 4, len(levels), dtype=torch.int64)


@pytest.mark.parametrize("healthy", [None, {1: {60.0: 80, 210.0: 10, 120.0: 10}}])
def test_a_healthy_lung_at_the_lesions_lowest_level_stays_as_it_is(healthy: dict | None) -> None:
    """Faint lesions share the lung's level of 50: a level that most of the image's lung has is the lung's."""
    values = values_of({1: [60.0, 80.0, 110.0, 120.0, 160.0]}, {1: {1}}, healthy=healthy)
    mask, label, layout = lung_with([50.0] * 7 + [100.0, 150.0, 200.0])
    edited = edit_mask(mask, label, layout, values, STEP)
    assert edited[0, 0, 0].tolist() == [50.0] * 9 + [200.0]


def test_a_level_that_is_commoner_in_healthy_organs_is_no_lesion() -> None:
    """Also where it is not the commonest of this image: here the lung breathed out."""
    values = values_of({1: [60.0, 110.0, 120.0, 130.0]}, {1: {1}}, healthy={1: {60.0: 70, 10.0: 25, 110.0: 5}})
    mask, label, layout = lung_with([0.0] * 6 + [50.0] * 3 + [100.0])
    assert edit_mask(mask, label, layout, values, STEP)[0, 0, 0].tolist() == [0.0] * 6 + [50.0] * 3 + [0.0]
    # What is healthy in another organ says nothing here.
    values = values_of({1: [60.0, 110.0, 120.0, 130.0]}, {1: {1}}, healthy={2: {60.0: 70}, 1: {10.0: 95, 110.0: 5}})
    assert edit_mask(mask, label, layout, values, STEP)[0, 0, 0].tolist() == [0.0] * 10


@pytest.mark.parametrize("step", [0.0, 5.0])
def test_fine_levels_are_compared_in_tens(step: float) -> None:
    """Few pixels have exactly one of 256 gray values: 63 is as much of the lung as 61 and 68 are."""
    values = values_of({1: [55.0, 65.0, 110.0, 113.0, 117.0, 120.0]}, {1: {1}},
                       healthy={1: {61.0: 40, 68.0: 40, 112.0: 1}})
    mask, label, layout = lung_with([20.0] * 5 + [60.0, 65.0, 110.0, 115.0])
    edited = edit_mask(mask, label, layout, values, step)[0, 0, 0]
    assert edited[:7].tolist() == mask[0, 0, 0, :7].tolist() and (edited[7:] - 20).abs().max() <= 0.5


def test_healthy_parts_are_counted_as_the_mask_would_show_them() -> None:
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.uniform(0, 255, (1, 2, 16, 16))).float()
    segments = torch.from_numpy(np.arange(16).reshape(4, 4).repeat(4, 0).repeat(4, 1))[None]
    label = torch.from_numpy(rng.integers(0, 2, (1, 16, 16)) * (rng.random((1, 16, 16)) < 0.4))
    layout = torch.from_numpy(rng.integers(0, 3, (1, 16, 16)))
    expected = np.zeros((3, 256, 2))
    for y, x in np.ndindex(16, 16):
        if label[0, y, x] == 0:
            same = (segments[0] == segments[0, y, x]) & (label[0] == 0)
            for channel in range(2):
                expected[layout[0, y, x], int(image[0, channel][same].double().mean()), channel] += 1
    np.testing.assert_array_equal(count_healthy(image, segments, label, layout, 2).numpy(), expected)


# ----------------------------------------------------------------------------------------------------------------------
# The labelled lesions' gray values


def test_parts_are_the_pixels_of_the_label_in_each_superpixel() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.uniform(0, 255, (1, 2, 16, 16))).float()
    segments = torch.from_numpy(np.arange(16).reshape(4, 4).repeat(4, 0).repeat(4, 1))[None]
    label = torch.from_numpy(rng.integers(0, 3, (1, 16, 16)) * (rng.random((1, 16, 16)) < 0.4))
    label[0, :4, :4] = 0
    label[0, :2, :2] = 1                                    # exactly four pixels: just enough
    layout = torch.zeros_like(label)
    layout[:, :, 8:] = 2
    parts = find_lesion_parts(image, segments, label, layout, wanted=1, num_organs=3)
    expected, pixels = [], []
    for number in range(16):
        inside = ((segments == number) & (label == 1))[0].numpy()
        if inside.sum() >= 4:
            expected.append(image[0].numpy()[:, inside].mean(1))
            pixels.append(inside.sum())
    assert 4 in pixels and len(pixels) < 16
    np.testing.assert_allclose(parts.value.numpy(), expected, rtol=1e-5)
    assert parts.pixels.tolist() == pixels
    assert parts.organs.tolist() == [True, False, True, False]


def test_values_are_drawn_as_often_as_pixels_have_them() -> None:
    values = values_of({1: [200.0, 100.0], 4: []}, {1: {1}, 4: set()}, pixels={1: [100, 300]})
    drawn = values.draw(4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 2, 1)
    counts = Counter(drawn[:, 0, 0].tolist())
    assert set(counts) == {100.0, 200.0} and abs(counts[100.0] / 4000 - 0.75) < 0.03
    assert values.exists.tolist() == [True, False] and (drawn[:, 1] == 0).all()
    assert values.draw(2, None)[:, 0, 0].tolist() == [100, 100]         # the median
    assert torch.equal(drawn, values.draw(4000, torch.Generator().manual_seed(0)))


def test_typical_values_are_weighted_quantiles() -> None:
    gray = list(range(0, 200, 10))
    values = values_of({1: [float(one) for one in gray]}, {1: {1}}, pixels={1: [1] * 19 + [81]})
    # 100 pixels: the 5th lies at 40, the 95th at 190, where most of them are.
    assert values.typical[0, :, 0].tolist() == [40, 190]


def test_the_pools_name_tells_where_it_came_from() -> None:
    one = values_of({1: [100.0]}, {1: {1}})
    assert one.sha256() == values_of({1: [150.0]}, {1: {1}}).sha256()
    other = values_of({1: [100.0]}, {1: {1}})
    other.origins = [("case", 1)]
    assert one.sha256() != other.sha256()
    assert one.state_dict() == {}           # fitted where a trainer starts, never saved
