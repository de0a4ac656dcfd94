"""`splits_final.json`: nnU-Net's folds, and label-ratio folds whose key `unlabelled` names cases with hidden labels.

Stock nnU-Net reads the same file by index and ignores the further keys `name` and `unlabelled`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json

PARTS = ("train", "unlabelled", "val")
Split = dict[str, Any]


# -- reading and checking ----------------------------------------------------------------------------------------------


def splits_file(preprocessed_folder: str | Path) -> Path:
    """Where nnU-Net looks for the splits of a dataset."""
    return Path(preprocessed_folder) / "splits_final.json"


def load_splits(preprocessed_folder: str | Path) -> list[Split]:
    """The folds of a dataset, in the order of their indices.

    Args:
        preprocessed_folder: nnUNet_preprocessed/DatasetXXX_Name.

    Raises:
        UserError: the file is missing or is not a list of {"train": [ids], "val": [ids]}, with optional "name" (text,
            unique) and "unlabelled" ([ids]).
    """
    path = splits_file(preprocessed_folder)
    splits = read_json(path, "run `nnunet_synth split`, which makes nnU-Net's default folds too, or write your own",
                       "correct it, or remove it to get nnU-Net's default folds")
    if not isinstance(splits, list):
        raise UserError(f"{path} must hold a list of folds")
    for index, split in enumerate(splits):
        _check_structure(split, index, path)
    names = [split["name"] for split in splits if "name" in split]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{path} holds several folds called {', '.join(twice)}; names must be unique")
    return splits


def _check_structure(split: Any, index: int, path: Path) -> None:
    if not isinstance(split, dict) or not {"train", "val"} <= split.keys():
        raise UserError(f"fold {index} of {path} must hold the keys \"train\" and \"val\"")
    for part in PARTS:
        ids = split.get(part, [])
        if not isinstance(ids, list) or not all(isinstance(case, str) for case in ids):
            raise UserError(f"\"{part}\" of fold {index} of {path} must be a list of case ids")
    if not isinstance(split.get("name", ""), str):
        raise UserError(f"\"name\" of fold {index} of {path} must be text")


def find_fold(splits: Sequence[Split], fold: int | str) -> int:
    """The index of a fold that is given by its index (0, "0") or by its name ("f0_10%").

    Raises:
        UserError: there is none; stock nnU-Net would train on a random split instead. The named ones are listed.
    """
    names = [split.get("name") for split in splits]
    if str(fold).isdigit() and int(fold) < len(splits):
        return int(fold)
    if fold in names:
        return names.index(fold)
    named = ", ".join(f"{index} = {name}" for index, name in enumerate(names) if name) or "none is named"
    raise UserError(f"splits_final.json has no fold {fold}; it has 0 to {len(splits) - 1} ({named}); "
                    "`nnunet_synth split` adds label-ratio folds")


def find_split(splits: Sequence[Split], fold: int | str) -> Split:
    """The fold given by its index or name; raises UserError as `find_fold` does."""
    return splits[find_fold(splits, fold)]


def check_split(split: Mapping[str, Any]) -> None:
    """Refuse a fold that leaks.

    Raises:
        UserError: no case is labelled, or an id is listed twice, be it in one of labelled, unlabelled and validation
            cases or in two of them.
    """
    called = f" {split['name']}" if "name" in split else ""
    if not split["train"]:
        raise UserError(f"the fold{called} has no labelled training case; correct \"train\" in splits_final.json")
    titles = {"train": "labelled (\"train\")", "unlabelled": "unlabelled", "val": "validation (\"val\")"}
    part_of: dict[str, str] = {}
    for part in PARTS:
        for case in split.get(part, []):
            if case in part_of:
                both = f"{titles[part_of[case]]} and {titles[part]}" if part_of[case] != part else \
                    f"{titles[part]}, twice"
                raise UserError(f"case {case} of the fold{called} is {both}; a case may be listed only once in "
                                "splits_final.json")
            part_of[case] = part


def split_sha256(split: Mapping[str, Any]) -> str:
    """SHA-256 of which cases are labelled, unlabelled and held out; order, name and index do not matter."""
    content = {part: sorted(split.get(part, [])) for part in PARTS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -- making ------------------------------------------------------------------------------------------------------------


def default_splits(case_ids: Sequence[str]) -> list[Split]:
    """nnU-Net's own five folds, exactly as `nnUNetTrainer.do_split` makes them when there is no file yet.

    Raises:
        UserError: fewer than five cases.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    if len(case_ids) < 5:
        raise UserError(f"nnU-Net's default split needs at least 5 labelled cases, there are {len(case_ids)}; write "
                        "your own splits_final.json")
    folds = generate_crossval_split(sorted(case_ids), seed=12345, n_splits=5)
    return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in folds]


def group_cases(case_ids: Sequence[str], by_group: str | None) -> dict[str, str]:
    """Case id → its group (patient, volume): the first capture group of the regular expression `by_group` where it is
    first found in the id, or all that it matched. Without an expression each case is a group.

    Raises:
        UserError: not a regular expression, or a case in which it is not found.
    """
    if by_group is None:
        return {case: case for case in case_ids}
    try:
        pattern = re.compile(by_group)
    except re.error as error:
        raise UserError(f"--by-group {by_group!r} is not a regular expression: {error}") from error
    groups = {}
    for case in case_ids:
        match = pattern.search(case)
        group = match and match[1 if pattern.groups else 0]
        if not group:
            raise UserError(f"case {case} does not match --by-group {by_group!r}; every case must belong to a group")
        groups[case] = group
    return groups


def parse_amount(amount: str | int, num_cases: int) -> tuple[str, Fraction]:
    """"10%" or "4" → (how it is spelled in a fold's name, number of cases out of `num_cases` that it means).

    Raises:
        UserError: neither a percentage in (0, 100] nor a whole number of cases in [1, num_cases].
    """
    text = str(amount).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if match is None or ("." in match[1] and not match[2]):
        raise UserError(f"--labelled {text!r} is neither a percentage (10%) nor a whole number of cases (4)")
    value = Fraction(match[1])
    if match[2]:
        if not 0 < value <= 100:
            raise UserError(f"--labelled {text}: a percentage must be above 0% and at most 100%")
        return f"{float(value):g}%", value * num_cases / 100
    if not 1 <= value <= num_cases:
        raise UserError(f"--labelled {text}: the fold has {num_cases} labelled training case(s)")
    return str(int(value)), value


def nested_subsets(group_of: Mapping[str, Hashable], sizes: Sequence[Fraction | int], seed: int) -> list[list[str]]:
    """Random subsets of whole groups, each contained in all larger ones.

    From the smallest on, each subset adds that choice among the remaining groups, in an order shuffled by `seed`,
    which brings its number of cases closest to the wanted size. Groups are never split, and there is at least one.

    Args:
        group_of: case id → its group.
        sizes: wanted numbers of cases, in any order.
        seed: same cases, groups, sizes and seed → same subsets.

    Returns:
        for each size, the sorted case ids of its subset.
    """
    cases_of: dict[Hashable, list[str]] = {}
    for case in sorted(group_of):
        cases_of.setdefault(group_of[case], []).append(case)
    groups = list(cases_of)
    order = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]

    subsets: dict[Fraction | int, list[str]] = {}
    chosen: list[str] = []
    for size in sorted(sizes):
        weights = [len(cases_of[group]) for group in order]
        added = {order[index] for index in _closest_sum(weights, size - len(chosen), allow_none=bool(chosen))}
        chosen = chosen + [case for group in order if group in added for case in cases_of[group]]
        order = [group for group in order if group not in added]
        subsets[size] = sorted(chosen)
    return [subsets[size] for size in sizes]


def _closest_sum(weights: Sequence[int], target: Fraction | int, allow_none: bool) -> list[int]:
    """Indices of weights whose sum is closest to `target` (the smaller sum of two, and of its ways the earliest)."""
    reached: dict[int, tuple[int, int]] = {0: (-1, 0)}          # sum → (its last index, the sum before that)
    for index, weight in enumerate(weights):
        for total in list(reached):
            reached.setdefault(total + weight, (index, total))
    total = min((total for total in reached if allow_none or total > 0), key=lambda total: (abs(total - target), total))
    indices = []
    while total > 0:
        index, total = reached[total]
        indices.append(index)
    return indices
