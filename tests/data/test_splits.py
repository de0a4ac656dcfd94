"""Folds with hidden labels: what is read, what is refused, and how subsets are drawn."""

import json
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from nnunet_synth.data.splits import (
    check_split,
    default_splits,
    find_fold,
    find_split,
    group_cases,
    load_splits,
    nested_subsets,
    parse_amount,
    split_sha256,
)
from nnunet_synth.errors import UserError


def random_groups(seed: int) -> dict[str, str]:
    """Up to 30 cases in groups of 1 to 5."""
    rng = np.random.default_rng(seed)
    return {f"p{group:02d}_{case}": f"p{group:02d}"
            for group in range(rng.integers(2, 9)) for case in range(rng.integers(1, 6))}


@pytest.mark.parametrize("seed", range(40))
def test_subsets_are_nested_and_of_whole_groups(seed):
    group_of = random_groups(seed)
    sizes = [Fraction(percent * len(group_of), 100) for percent in (50, 10, 75, 30)]
    subsets = [set(subset) for subset in nested_subsets(group_of, sizes, seed)]
    by_size = [subset for _, subset in sorted(zip(sizes, subsets, strict=True), key=lambda pair: pair[0])]

    assert all(smaller <= larger for smaller, larger in zip(by_size, by_size[1:], strict=False))
    for subset in subsets:
        assert subset
        assert {case for case in group_of if group_of[case] in {group_of[chosen] for chosen in subset}} == subset


@pytest.mark.parametrize("seed", range(40))
def test_the_smallest_subset_is_as_close_to_its_size_as_whole_groups_allow(seed):
    group_of = random_groups(seed)
    size = Fraction(30 * len(group_of), 100)
    weights = [list(group_of.values()).count(group) for group in dict.fromkeys(group_of.values())]
    sums = [sum(chosen) for count in range(1, len(weights) + 1) for chosen in combinations(weights, count)]
    subset, = nested_subsets(group_of, [size], seed)
    assert abs(len(subset) - size) == min(abs(total - size) for total in sums)


def test_without_groups_sizes_are_exact():
    subsets = nested_subsets({f"case{i}": f"case{i}" for i in range(200)}, [20, 40, 60], seed=3)
    assert [len(subset) for subset in subsets] == [20, 40, 60]


def test_one_seed_gives_one_choice_whatever_the_order_of_the_cases_and_another_seed_another():
    group_of = random_groups(1)
    backwards = dict(reversed(list(group_of.items())))
    assert nested_subsets(group_of, [5, 9], seed=7) == nested_subsets(backwards, [5, 9], seed=7)
    assert len({tuple(nested_subsets(group_of, [5], seed=seed)[0]) for seed in range(10)}) > 3


def test_every_case_is_drawn_equally_often():
    group_of = {f"case{i}": f"case{i}" for i in range(10)}
    drawn = [case for seed in range(600) for case in nested_subsets(group_of, [3], seed)[0]]
    counts = np.array([drawn.count(case) for case in group_of])
    expected = 600 * 3 / 10
    # Binomial(600, 0.3): a standard deviation is 11.2; 4.5 of them are exceeded by chance once in 10,000 such tests.
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(600 * 0.3 * 0.7)


@pytest.mark.parametrize(("amount", "spelling", "size"), [
    ("10%", "10%", Fraction(9, 2)), ("2.5%", "2.5%", Fraction(9, 8)), ("10.0%", "10%", Fraction(9, 2)),
    ("100%", "100%", 45), ("4", "4", 4), (4, "4", 4)])
def test_amounts(amount, spelling, size):
    assert parse_amount(amount, 45) == (spelling, size)


@pytest.mark.parametrize("amount", ["0%", "101%", "-3", "0", "46", "0.1", "ten", "%", "nan%", ""])
def test_impossible_amounts_are_refused(amount):
    with pytest.raises(UserError, match="--labelled"):
        parse_amount(amount, 45)


def test_groups_are_the_first_capture_group_or_the_whole_match():
    cases = ["10_85902_1", "10_85902_3", "7_85703_0"]
    assert group_cases(cases, r"^(\d+)_\d+") == {"10_85902_1": "10", "10_85902_3": "10", "7_85703_0": "7"}
    assert group_cases(cases, r"^\d+_\d+")["10_85902_3"] == "10_85902"
    assert group_cases(cases, None) == {case: case for case in cases}


@pytest.mark.parametrize(("expression", "said"), [
    (r"patient\d+", "case scan_1 does not match"), ("(x)?", "case scan_1 does not match"),
    ("(", "is not a regular expression")])
def test_groups_that_cannot_be_found_are_refused(expression, said):
    with pytest.raises(UserError, match=said):
        group_cases(["scan_1"], expression)


def test_default_folds_are_those_that_nnunet_makes():
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    cases = [f"case_{i}" for i in range(12)]
    expected = generate_crossval_split(list(np.sort(cases)), seed=12345, n_splits=5)
    assert default_splits(cases[::-1]) == expected
    with pytest.raises(UserError, match="at least 5"):
        default_splits(cases[:4])


SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"name": "f0_1", "train": ["a"], "unlabelled": ["b"], "val": ["c"]}]


@pytest.mark.parametrize("fold", [1, "1", "f0_1"])
def test_folds_are_found_by_index_and_by_name(fold):
    assert find_split(SPLITS, fold) == SPLITS[1]
    assert find_fold(SPLITS, fold) == 1


@pytest.mark.parametrize("fold", [2, "2", -1, "f0_2", "all"])
def test_a_fold_that_does_not_exist_is_refused_and_the_named_ones_are_listed(fold):
    with pytest.raises(UserError, match=r"no fold .*1 = f0_1"):
        find_split(SPLITS, fold)


@pytest.mark.parametrize(("change", "said"), [
    ({"unlabelled": ["b", "a"]}, r"case a .* is labelled .* and unlabelled"),
    ({"val": ["c", "a"]}, r"case a .* is labelled .* and validation"),
    ({"val": ["c", "b"]}, r"case b .* is unlabelled and validation"),
    ({"train": ["a", "a"]}, r"case a .*twice"),
    ({"train": []}, "no labelled training case")])
def test_leaks_are_refused(change, said):
    check_split(SPLITS[1])
    with pytest.raises(UserError, match=said):
        check_split({**SPLITS[1], **change})


def test_the_hash_identifies_the_cases_and_nothing_else():
    split = {"name": "x", "train": ["a", "b"], "unlabelled": ["d"], "val": ["c"]}
    assert split_sha256(split) == split_sha256({"train": ["b", "a"], "val": ["c"], "unlabelled": ["d"]})
    assert split_sha256(SPLITS[0]) == split_sha256({**SPLITS[0], "unlabelled": []})
    changes = [{"train": ["a"]}, {"unlabelled": []}, {"val": ["d"], "unlabelled": ["c"]}]
    assert len({split_sha256({**split, **change}) for change in [{}, *changes]}) == 4


@pytest.mark.parametrize(("content", "said"), [
    ("[{", "not valid JSON"), ('{"train": []}', "list of folds"), ('[{"train": []}]', 'keys "train" and "val"'),
    ('["a"]', 'keys "train" and "val"'), ('[{"train": "a", "val": []}]', '"train" of fold 0'),
    ('[{"train": [], "val": [], "unlabelled": [1]}]', '"unlabelled" of fold 0'),
    ('[{"name": 3, "train": [], "val": []}]', '"name" of fold 0'),
    (json.dumps([SPLITS[1], SPLITS[1]]), "several folds called f0_1")])
def test_broken_files_are_refused(tmp_path, content, said):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_splits(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nnunet_synth split"):
        load_splits(tmp_path)


def test_what_was_written_is_read(tmp_path):
    (tmp_path / "splits_final.json").write_text(json.dumps(SPLITS))
    assert load_splits(tmp_path) == SPLITS
