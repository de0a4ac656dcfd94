"""Hide the labels of most training cases of a fold, for a study over label ratios.

Each ratio becomes one more fold in nnU-Net's own splits_final.json: its validation cases are those of the fold it is
made of, `train` are the cases whose labels stay, `unlabelled` the others. The subsets are nested (the 10% are part of
the 20%), and groups (patients, volumes) are never split. Stock nnU-Net trainers take the same FOLD and see exactly the
same labels. If the dataset has no splits yet, nnU-Net's default five folds are made first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_synth.argument_types import whole
from nnunet_synth.bounds import SEED
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object

if TYPE_CHECKING:
    from nnunet_synth.data.splits import Split

EXAMPLE = "nnunet_synth split 501 --of-fold 0 --labelled 10% 20% 30% --by-group '^(patient\\d+)' --seed 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("--of-fold", required=True, metavar="F",
                        help="the fold whose training cases are divided: its index, or its name")
    parser.add_argument("--labelled", required=True, nargs="+", metavar="AMOUNT",
                        help="how much stays labelled: percentages of the fold's training cases (10%%), or numbers of "
                             "cases (4); as closely as whole groups allow")
    parser.add_argument("--by-group", metavar="REGEX",
                        help="regular expression that finds a case's group in its id: the first capture group, or the "
                             "whole match (default: each case is its own group)")
    parser.add_argument("--seed", type=whole(SEED), default=0, help="which random subsets (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace folds of the same name")


def run(args: argparse.Namespace) -> None:
    split(args.dataset, args.of_fold, args.labelled, args.by_group, args.seed, args.force)


def split(dataset: str | int, of_fold: int | str, labelled: Sequence[str | int], by_group: str | None = None,
          seed: int = 0, force: bool = False) -> list[int]:
    """Add one fold for each label ratio to `splits_final.json` and print how to train on it.

    Args:
        dataset: id or full name.
        of_fold: index or name of the fold to divide.
        labelled: percentages ("10%") or numbers of cases (4) whose labels stay.
        by_group: regular expression that finds the group in a case id; None = each case is a group.
        seed: of the random choice.
        force: replace folds of the same name, which keep their index.

    Returns:
        the index of each new fold, in the order of `labelled`: the FOLD of `nnUNetv2_train`.

    Raises:
        UserError: unknown dataset or fold, an impossible amount, a case without a group, a fold that exists already,
            or two amounts that come to the same cases. Nothing is written then.
    """
    from nnunet_synth.atomic import write_json
    from nnunet_synth.data.nnunet_folders import environment_folder, find_dataset
    from nnunet_synth.data.splits import default_splits, find_fold, load_splits, splits_file

    name = find_dataset(dataset)
    folder = environment_folder("nnUNet_preprocessed") / name
    splits = load_splits(folder) if splits_file(folder).exists() else default_splits(_labelled_cases(name))
    made = divide_fold(splits, find_fold(splits, of_fold), labelled, by_group, seed)

    place = {existing["name"]: index for index, existing in enumerate(splits) if "name" in existing}
    already = [entry["name"] for entry in made if entry["name"] in place]
    if already and not force:
        raise UserError(f"{splits_file(folder)} has {', '.join(already)} already; --force replaces them (runs that "
                        "used them then no longer match)")
    indices = []
    for entry in made:
        index = place.get(entry["name"], len(splits))
        splits[index:index + 1] = [entry]
        indices.append(index)
    write_json(splits, splits_file(folder))

    _report(name, made, indices)
    return indices


def divide_fold(splits: Sequence[Split], index: int, labelled: Sequence[str | int], by_group: str | None,
                seed: int) -> list[Split]:
    """The new folds, not yet written: nested subsets of the training cases of `splits[index]`.

    Cases that the fold itself hides already stay unlabelled. Raises UserError as `split` does.
    """
    from nnunet_synth.data.splits import check_split, group_cases, nested_subsets, parse_amount

    parent = splits[index]
    check_split(parent)
    train = parent["train"]
    group_of = group_cases([*train, *parent["val"]], by_group)
    shared = sorted({group_of[case] for case in train} & {group_of[case] for case in parent["val"]})
    if shared:
        print(f"warning: fold {index} itself has cases of {len(shared)} group(s) both in training and in validation "
              f"(e.g. {shared[0]}); its scores will be too good", file=sys.stderr)

    amounts = [parse_amount(amount, len(train)) for amount in labelled]
    subsets = nested_subsets({case: group_of[case] for case in train}, [size for _, size in amounts], seed)
    made: dict[tuple[str, ...], Split] = {}
    for (spelling, _), subset in zip(amounts, subsets, strict=True):
        twin = made.get(tuple(subset))
        if twin is not None:
            raise UserError(f"--labelled {spelling} comes to the same {len(subset)} case(s) as {twin['name']}: the "
                            "groups are too few or too large; leave one of the two out")
        made[tuple(subset)] = {
            "name": f"{parent.get('name', f'f{index}')}_{spelling}",
            "train": subset,
            "unlabelled": sorted({*train, *parent.get("unlabelled", [])} - set(subset)),
            "val": parent["val"],
        }
    return list(made.values())


def _labelled_cases(dataset_name: str) -> list[str]:
    """Ids of the cases that nnU-Net would divide: those preprocessed, or else those of the raw dataset."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from nnunet_synth.data.nnunet_folders import environment_folder
    preprocessed = environment_folder("nnUNet_preprocessed") / dataset_name
    if (preprocessed / "gt_segmentations").is_dir():
        ending = read_object(preprocessed / "dataset.json", "restore it", "correct it", "file_ending")["file_ending"]
        return sorted(path.name.removesuffix(ending) for path in (preprocessed / "gt_segmentations").glob(f"*{ending}"))
    raw = environment_folder("nnUNet_raw") / dataset_name
    if not (raw / "dataset.json").exists():
        raise UserError(f"{raw / 'dataset.json'} does not exist: there is no dataset {dataset_name} to split")
    return sorted(get_filenames_of_train_images_and_targets(str(raw)))


def _report(dataset_name: str, made: Sequence[Split], indices: Sequence[int]) -> None:
    for entry, index in zip(made, indices, strict=True):
        num_labelled, num_hidden = len(entry["train"]), len(entry["unlabelled"])
        percent = 100 * num_labelled / (num_labelled + num_hidden)
        print(f"fold {index} = {entry['name']}: {num_labelled} labelled ({percent:.1f}%), {num_hidden} unlabelled, "
              f"{len(entry['val'])} validation cases")
    print(f"train with: nnUNetv2_train {int(dataset_name[7:10])} 2d {indices[0]} -tr SACPSTrainer")
