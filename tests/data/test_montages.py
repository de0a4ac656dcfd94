"""Montages: which slices are in them, that everything moves with its slice, and that they can be cut apart again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_synth.data.montages import MontageSlices, cut_apart, parse_montage, tile
from nnunet_synth.data.slice_arrays import SliceArrays
from nnunet_synth.data.slices import FoldSlices, UnlabelledSlices
from nnunet_synth.errors import UserError

SIZE, NUM_SLICES = 20, 14
LUNG = range(2, 13)             # 11 slices with enough lung; slices 1 and 13 have some, too little
TARGETS = (4, 9)


class Cases:
    """Case c, slice z: the image is 100 c + z; the layout a square of 1, in slices without enough lung a short line of
    it; label 2 in slices 4 and 9."""

    def __init__(self, has_layout=True, lung=LUNG):
        self.has_layout, self.lung = has_layout, lung

    def open(self, case_id):
        layouts = np.stack([self.read((case_id, z)).layout for z in range(NUM_SLICES)])
        return None, None, layouts + 256 * 7 * (layouts > 0)        # with clusters in the same map

    def read(self, origin):
        case_id, z = origin
        layout = np.zeros((SIZE, SIZE), np.int16)
        if self.has_layout and z in self.lung:
            layout[2:12, 3:15] = 1
        elif self.has_layout and 1 <= z <= 13:
            layout[0, :5] = 1
        label = np.zeros_like(layout)
        if z in TARGETS:
            label[5, 7] = 2
        image = np.full((1, SIZE, SIZE), 100 * int(case_id) + z, np.float32)
        return SliceArrays(image, label, layout, (layout * (z + 1)).astype(np.int16), layout >= 0)


class Fold(FoldSlices):
    def __init__(self, cases=None, num_cases=3):
        self.cases, self.case_ids, self.target_labels = cases or Cases(), [str(n) for n in range(num_cases)], [2]
        self.target_origins = [(case_id, z) for case_id in self.case_ids for z in TARGETS]

    def unlabelled(self):
        other = object.__new__(UnlabelledSlices)
        cases = Cases()
        other.origins = [(cases, (case_id, z)) for case_id in ("8", "9") for z in range(NUM_SLICES)]
        return other


def quarter_of(z):
    """By hand: the 11 slices 2 … 12 in four parts of 3, 3, 3 and 2."""
    return [2, 2, 2, 5, 5, 5, 8, 8, 8, 11, 11].index([2, 5, 8, 11][min((z - 2) // 3, 3)]) // 3


def slices_in(montage, rows=2, columns=2):
    """What the tiles of one montage [1, …] show; turned ones have zeros at the border."""
    return [round(part.max().item()) for part in cut_apart(montage, rows, columns).image]


def test_a_montage_has_one_slice_of_each_quarter_of_the_slices_with_enough_lung():
    montages = MontageSlices(Fold(), 2, 2)
    seen = set()
    for seed in range(80):
        one = montages.sample(1, (2 * 8, 2 * 8), np.random.default_rng(seed))      # crops: no padding
        values = slices_in(one)
        cases, indices = {value // 100 for value in values}, [value % 100 for value in values]
        assert len(cases) == 1 and [quarter_of(z) for z in indices] == [0, 1, 2, 3]
        assert one.origin == [(str(cases.pop()), indices[0])]
        seen |= set(indices)
    assert seen == set(LUNG)            # all of them, and no other


def test_a_slice_with_too_little_lung_is_dropped_wherever_it_lies():
    kept = [2, 3, 4, 6, 7, 8, 11, 12]           # none of 5, 9 (a target) and 10, though they lie between others
    montages = MontageSlices(Fold(Cases(lung=kept)), 2, 2)
    assert [part.tolist() for part in montages.cases[0].parts] == [[2, 3], [4, 6], [7, 8], [11, 12]]
    assert montages.cases[0].targets == [(1, 4)]
    shown = {value % 100 for part in montages.iterate(only_targets=False) for value in slices_in(part)}
    assert shown == set(kept)
    drawn = montages.sample(60, (2 * 8, 2 * 8), np.random.default_rng(0))
    assert {value % 100 for part in range(60) for value in slices_in(select(drawn, part))} == set(kept)


def test_half_of_the_montages_are_chosen_for_a_target():
    montages = MontageSlices(Fold(), 2, 2)
    drawn = montages.sample(400, (2 * SIZE, 2 * SIZE), np.random.default_rng(0))
    share = (drawn.label == 2).flatten(1).any(1).float().mean().item()
    # The other half holds one by chance: 1 − (2/3)² of two quarters in which one slice of three is a target.
    assert share == pytest.approx(0.5 + 0.5 * (1 - (2 / 3) ** 2), abs=0.06)
    small = montages.sample(200, (2 * 4, 2 * 4), np.random.default_rng(1))         # a crop holds the target's pixel
    assert 0.4 < (small.label == 2).flatten(1).any(1).float().mean().item()


def test_labels_layouts_clusters_and_valid_move_with_the_image():
    montages = MontageSlices(Fold(), 2, 2)
    drawn = montages.sample(60, (2 * SIZE, 2 * SIZE), np.random.default_rng(3))
    parts = cut_apart(drawn, 2, 2)
    moved = 0
    for image, label, layout, cluster, valid in zip(parts.image, parts.label, parts.layout, parts.cluster, parts.valid,
                                                    strict=True):
        z = int(image.max()) % 100
        assert bool((cluster[layout > 0] == z + 1).all()) and bool((cluster[layout == 0] == 0).all())
        assert not (label > 0).any() or z in TARGETS
        assert bool((layout[label > 0] == 1).all())
        assert valid.float().mean() > 0.5 and not image[0][~valid].any()
        moved += not layout[2:12, 3:15].all()
    assert moved > 30                                   # flipped and turned
    # All tiles of a montage in the same way, so the lungs of its slices still lie upon each other.
    for layout in parts.layout.unflatten(0, (60, 4)):
        assert bool((layout == layout[:1]).all())


def test_iterate_shows_every_slice_in_a_fixed_order():
    montages = MontageSlices(Fold(), 2, 2)
    whole = list(montages.iterate(only_targets=False))
    assert [part.image.shape for part in whole] == [(1, 1, 40, 40)] * 9         # 3 cases, the longest quarter has 3
    assert {value for part in whole for value in slices_in(part)} == {100 * case + z for case in range(3) for z in LUNG}
    with_targets = list(montages.iterate(only_targets=True))
    assert [slices_in(part) for part in with_targets] == [slices_in(part) for part in whole if (part.label == 2).any()]
    assert 0 < len(with_targets) < 9 and len(list(montages.iterate(False, max_slices=2))) == 2


def test_unlabelled_slices_become_montages_too():
    montages = MontageSlices(Fold(), 1, 3).unlabelled()
    drawn = montages.sample(20, (8, 3 * 8), np.random.default_rng(0))
    assert {value // 100 for part in range(20) for value in slices_in(select(drawn, part), 1, 3)} == {8, 9}
    assert montages.unlabelled() is not None and not list(montages.iterate(only_targets=True))


def select(slices, index):
    one = slice(index, index + 1)
    return replace(slices, image=slices.image[one], label=slices.label[one], layout=slices.layout[one],
                   valid=slices.valid[one], cluster=slices.cluster[one], origin=slices.origin[one])


def test_the_same_numbers_give_the_same_montages():
    montages = MontageSlices(Fold(), 2, 2)
    first, again, other = (montages.sample(5, (24, 24), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)


def test_cut_apart_undoes_tile():
    rng = np.random.default_rng(0)
    parts = [SliceArrays(rng.normal(size=(2, 3, 4)).astype(np.float32), *rng.integers(0, 9, (3, 3, 4)).astype(np.int16),
                         rng.random((3, 4)) < 0.5) for _ in range(6)]
    montage = tile(parts, 2, 3)
    assert montage.image.shape == (2, 6, 12)
    np.testing.assert_array_equal(montage.label[3:, 4:8], parts[4].label)       # row by row
    from nnunet_synth.data.slices import to_slices
    cut = cut_apart(to_slices([montage, montage], [("a", 0), ("b", 1)]), 2, 3)
    assert cut.origin == [("a", 0)] * 6 + [("b", 1)] * 6
    for name in ("image", "label", "layout", "cluster", "valid"):
        expected = np.stack([getattr(part, name) for part in parts] * 2)
        np.testing.assert_array_equal(getattr(cut, name).numpy(), expected)


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


def refused(match, call):
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


def test_cases_without_layout_and_short_cases(capsys):
    refused("case 0 has no layout.*nnunet_synth layouts", lambda: MontageSlices(Fold(Cases(has_layout=False)), 2, 2))
    refused("none of the 3 cases has 4 slices with at least 10%", lambda: MontageSlices(Fold(Cases(lung=range(4, 7))),
                                                                                        2, 2))
    refused("no slice of any montage would hold a target", lambda: MontageSlices(Fold(Cases(lung=range(10, 13))), 1, 2))

    class OneShort(Cases):
        def read(self, origin):
            part = super().read(origin)
            return part if origin[0] != "1" or origin[1] < 4 else replace(part, layout=0 * part.layout)

    kept = MontageSlices(Fold(OneShort()), 2, 2)
    assert "warning: 1 of 3 cases have fewer than 4 slices" in capsys.readouterr().err
    assert [case.case_id for case in kept.cases] == ["0", "2"] and kept.case_ids == ["0", "1", "2"]


def test_sizes_that_cannot_be_divided_and_bad_texts():
    montages = MontageSlices(Fold(), 2, 3)
    refused("montage of 16 × 16 pixels cannot be divided into 2 × 3", lambda: montages.tile_size((16, 16)))
    assert montages.tile_size((16, 18)) == (8, 6)
    assert parse_montage(None) == [] and parse_montage("2x2") == [2, 2] and parse_montage("1x4") == [1, 4]
    for text in ("2", "2x", "x2", "0x2", "2X2", "1x1", "two by two", "-2x2"):
        refused(f"--montage {text}: give rows and columns", lambda text=text: parse_montage(text))
