"""COVID-19-20: the COVID-19 Lung CT Lesion Segmentation Challenge 2020, 199 labelled and 50 unlabelled chest CTs.

Where: https://covid-segmentation.grand-challenge.org (registration; download `COVID-19-20_v2`, the corrected version).
Licence: the challenge's own terms at registration, which we could not check. The images come from TCIA's "CT Images in
COVID-19" (CC BY 4.0); a copy on Hugging Face (MedOtter/COVID-19-20) states CC BY 4.0 for images and masks.
Cite: H. R. Roth et al., Rapid artificial intelligence solutions in a pandemic - The COVID-19-20 Lung CT Lesion
Segmentation Challenge, Medical Image Analysis 82:102605, 2022, doi:10.1016/j.media.2022.102605.
Size: 249 volumes of 512 x 512 x 37 to some 360 voxels, slices mostly 5 mm apart: 20 to 190 MB each uncompressed.

SOURCE is the folder COVID-19-20_v2, its archive or a folder that holds either:

    COVID-19-20_v2/Train/volume-covid19-A-0003_ct.nii.gz             199 images; names may have a suffix: A-0180_0
    COVID-19-20_v2/Train/volume-covid19-A-0003_seg.nii.gz            their labels, 1 = lesion
    COVID-19-20_v2/Validation/volume-covid19-A-0004_ct.nii.gz        50 images, published without labels

Train becomes imagesTr and labelsTr, Validation imagesUl. A validation image joins the labelled ones where its label
lies beside it (_seg.nii.gz) or in --validation-labels FOLDER (ID_seg.nii.gz or ID.nii.gz). Each image becomes an LPS
array; three of the 50 validation images are stored from head to feet (LPI).

--split sacps is the setting of the SA-CPS paper: of the 249, 180 to train on, 19 to validate on and 50 to test on; of
the 180, 18, 36 or 54 keep their labels, each set within the next. Test cases become imagesTs and labelsTs, the three
ratios the folds "sacps_10%", "sacps_20%" and "sacps_30%" of splits_final.json. With --split-file FILE the ids are those
of the published COVID249_splits.json, or of an Excel sheet with one column a part, named

    test    val    train_0.1_l    train_0.1_u    train_0.2_l    train_0.2_u    train_0.3_l    train_0.3_u

(_l keeps its labels, _u does not). All its 19 validation and 31 of its 50 test cases are the challenge's Validation
images, so it needs --validation-labels. Without a file we draw our own split of the labelled cases in the same
proportions (--seed), patients kept together. Test cases without a label are left out altogether, since in the pool they
would be trained on; other cases without one join the pool.

--lungs FOLDER takes lung masks ID.nii.gz as layouts (1 left lung, 2 right lung). Where 1 lies on the patient's right,
as lungmask numbers them, the two are exchanged; where a mask mixes them up, each voxel gets the side it lies on.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.data.splits import nested_subsets
from nnunet_synth.dataset_conversion import published_splits
from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, Role, reject
from nnunet_synth.dataset_conversion.published_splits import Fold
from nnunet_synth.dataset_conversion.sources import SourceFile, list_files
from nnunet_synth.dataset_conversion.volumes import compact, read_volume, to_lps, turned
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

    from nnunet_synth.dataset_conversion.writer import CaseReport

HELP = "COVID-19-20 challenge: 199 labelled and 50 unlabelled chest CTs"
EXAMPLE = ("nnunet_synth convert covid-19-20 ~/downloads/COVID-19-20_v2 -d 522 --validation-labels ~/validation_seg "
           "--split sacps --split-file COVID249_splits.json --jobs 4")

LABELS = {"background": 0, "infection": 1}
LEFT, RIGHT = 1, 2
LAYOUT_LABELS = {"left_lung": LEFT, "right_lung": RIGHT}
RATIOS = ("10", "20", "30")             # per cent of the training cases that stay labelled
# `ids_sha256` of the lists in COVID249_splits.json.
PUBLISHED = {
    "test": "39e3ce5ebca3f038f3b5f9933444041566962b68df203e7317d1ddfe5ee007e7",
    "val": "ef2d29337807a8abaa963e209aa368983bdecb84afb6c8cb5cc26ecd399ae145",
    "train_0.1_l": "ace5bec3045bb17c79e62499c3a4427f5453b33e019d6a8df781cdb2a1ec16c4",
    "train_0.1_u": "aec0bf14834ddf1db46ca23b0cedccc29ca286aff9e608c9473845de53e758f9",
    "train_0.2_l": "ac2e9459eb6a337d54a9418e527b108ffca810de98ca50e2379e2c3c71657575",
    "train_0.2_u": "658bae9aa72bf49be3af591f5c8f3ae9b99ee8956cb6d2ec91bcb2369ba8dddf",
    "train_0.3_l": "0ccb11d87d60d534edc27c638d6f5a370598b581ba84539f75247c150acdb8ba",
    "train_0.3_u": "c4ddd1df4da4921e912e47c6caf3c0d5eae91beaa48fc51073df00185a094575",
}
NUM_TRAIN, NUM_VAL, NUM_TEST = 180, 19, 50          # of the published split

_ID = r"(?P<id>volume-covid19-[A-Z]-\d+(?:_\d+)?)"
_FILE = re.compile(_ID + r"_(?P<kind>ct|seg)\.nii(?:\.gz)?")
_NAMED_BY_ID = re.compile(_ID + r"(?:_seg)?\.nii(?:\.gz)?")
_FOLDERS = ("train", "validation", "")              # "": SOURCE is one of the two
_AGREES = 0.9       # share of a lung mask's voxels on their own side; published masks: 0.97 to 1.00, or 0.32 and 0.38


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        validation_labels: folder or archive with labels of the challenge's validation images.
        split: "sacps" or None.
        split_file: with the ids of the published split; without it, ours is drawn.
        ratio: which folds: "10", "20", "30" or "all".
        seed: of our own split.
        lungs: folder or archive with lung masks.
    """

    validation_labels: str | Path | None = None
    split: str | None = None
    split_file: str | Path | None = None
    ratio: str = "all"
    seed: int = 0
    lungs: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", str(self.ratio))
        if self.split not in (None, "sacps"):
            raise UserError(f"covid-19-20 has no split {self.split!r}: it has sacps")
        if self.ratio not in (*RATIOS, "all"):
            raise UserError(f"--ratio {self.ratio}: choose one of {', '.join(RATIOS)}, all")
        if self.split is None and (self.split_file is not None or self.ratio != "all"):
            raise UserError("--split-file and --ratio belong to --split sacps: add it")

    @property
    def ratios(self) -> tuple[str, ...]:
        return RATIOS if self.ratio == "all" else (self.ratio,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--validation-labels", type=Path, metavar="FOLDER",
                        help="labels of the challenge's validation images, which then are labelled cases")
    parser.add_argument("--split", choices=("sacps",), help="folds of the SA-CPS paper; without it, nnU-Net's five")
    parser.add_argument("--split-file", type=Path, metavar="FILE",
                        help="ids of the published split, .json or .xlsx (default: a split of our own, see --seed)")
    parser.add_argument("--ratio", choices=(*RATIOS, "all"), default="all",
                        help="per cent of the training cases that keep their labels (default: a fold for each)")
    parser.add_argument("--seed", type=int, default=0, help="of our own split (default: 0)")
    parser.add_argument("--lungs", type=Path, metavar="FOLDER", help="lung masks ID.nii.gz, which become the layouts")


def describe(options: Options) -> DatasetDescription:
    """What `dataset.json` says about it."""
    notes = ["most labels were drawn on 5 mm slices: distances across slices (NSD, HD95) are coarse"]
    if options.split_file is not None:
        parts = published_splits.read_parts(options.split_file, _part_names(options))
        notes.append(f"the split of {Path(options.split_file).name} {published_splits.compared(parts, PUBLISHED)}")
    elif options.split:
        notes.append(f"the split is our own (seed {options.seed}), in the proportions of the SA-CPS paper: its scores "
                     "are not comparable case by case with published ones")
    return DatasetDescription(
        name="COVID1920",
        channel_names=("CT",),
        labels=LABELS,
        file_ending=".nii.gz",
        reader_writer="SimpleITKIO",
        num_dimensions=3,
        licence="challenge terms at registration (not checked); CC BY 4.0 as stated by TCIA for the images and by a "
                "copy on Hugging Face (MedOtter/COVID-19-20)",
        citation="H. R. Roth et al., Rapid artificial intelligence solutions in a pandemic - The COVID-19-20 Lung CT "
                 "Lesion Segmentation Challenge, Medical Image Analysis 82:102605, 2022, "
                 "doi:10.1016/j.media.2022.102605",
        source="https://covid-segmentation.grand-challenge.org",
        description="Chest CT of COVID-19 patients, lesions",
        layout_labels=LAYOUT_LABELS if options.lungs is not None else {},
        notes=tuple(notes),
    )


# ----------------------------------------------------------------------------------------------------------------------
# What lies there


def find_cases(source: str | Path, options: Options) -> Iterator[Case]:
    """Yield all cases in the order of their ids, which are the challenge's, suffixes included.

    Raises:
        UserError: `source` is not this dataset; two labels or lung masks of one case; lung masks or labels of other
            cases only; a split that cannot be used.
    """
    images, labels = _images_and_labels(source)
    if options.validation_labels is not None:
        given = _named_by_id(options.validation_labels, "labels")
        if not given.keys() & images.keys():
            raise UserError(f"{options.validation_labels} holds no label of a case in {source}: their names are those "
                            "of the images, ID_seg.nii.gz")
        labels = given | labels
    lungs = {} if options.lungs is None else _named_by_id(options.lungs, "lung masks")
    if options.lungs is not None and not lungs.keys() & images.keys():
        raise UserError(f"{options.lungs} holds no lung mask of a case in {source}: expected ID.nii.gz")

    folds = _folds(options, sorted(images.keys() & labels.keys()), images)
    for case_id in sorted(images.keys() | labels.keys()):
        label = labels.get(case_id)
        parts = {name: fold[case_id] for name, fold in folds.items() if case_id in fold}
        is_test = "test" in parts.values()
        for image in images.get(case_id, []):
            is_train = image.path.parent.name.lower() == "train"
            if is_train and label is None:
                yield _rejected(case_id, image, f"{image} has no label beside it (_seg.nii.gz): copy it again", parts)
            elif label is not None or not is_test:
                yield _case(case_id, image, label, lungs.get(case_id), parts)
        if case_id not in images:
            yield _rejected(case_id, label, f"{label} is a label without an image ({case_id}_ct.nii.gz)", parts)


def make_splits(cases: Sequence[CaseReport], options: Options) -> list[dict[str, Any]]:
    """The folds of `--split`, of what was written; prints what they lack of the split."""
    if options.split is None:
        return []
    if options.split_file is not None:
        folds = _read_folds(options)
    else:
        folds = {name: {case.id: case.metadata[name] for case in cases if name in case.metadata}
                 for name in _fold_names(options)}
    print(*published_splits.report(folds, cases), sep="\n")
    return published_splits.folds_of(_fold_names(options), cases)


def patient_of(case_id: str) -> str:
    """`volume-covid19-A-0180_0` → `volume-covid19-A-0180`: the suffix counts the scans of one patient."""
    return re.sub(r"_\d+$", "", case_id)


def _images_and_labels(source: str | Path) -> tuple[dict[str, list[SourceFile]], dict[str, SourceFile]]:
    images: dict[str, list[SourceFile]] = {}
    labels: dict[str, SourceFile] = {}
    for file in list_files(source):
        match = _FILE.fullmatch(file.path.name)
        if match is None or file.path.parent.name.lower() not in _FOLDERS:
            continue
        if match["kind"] == "ct":
            images.setdefault(match["id"], []).append(file)
        elif match["id"] in labels:
            raise UserError(f"{labels[match['id']]} and {file} would both label {match['id']}: remove one")
        else:
            labels[match["id"]] = file
    if not images:
        raise UserError(f"{source} holds no volume-covid19-A-XXXX_ct.nii.gz in Train or Validation: it is not the "
                        "COVID-19-20 challenge's download")
    return images, labels


def _named_by_id(folder: str | Path, what: str) -> dict[str, SourceFile]:
    """ID.nii.gz or ID_seg.nii.gz, anywhere in a folder or archive."""
    found: dict[str, SourceFile] = {}
    for file in list_files(folder):
        match = _NAMED_BY_ID.fullmatch(file.path.name)
        if match and match["id"] in found:
            raise UserError(f"{found[match['id']]} and {file} are both {what} of {match['id']}: remove one")
        if match:
            found[match["id"]] = file
    return found


def _case(case_id: str, image: SourceFile, label: SourceFile | None, lungs: SourceFile | None,
          parts: Mapping[str, str]) -> Case:
    if "test" in parts.values():
        role: Role = "test"
    else:
        role = "labelled" if label else "unlabelled"
    return Case(id=case_id, role=role, sources=tuple(file for file in (image, label, lungs) if file is not None),
                read=partial(read_case, image, label, lungs), group=patient_of(case_id), metadata=parts)


def _rejected(case_id: str, file: SourceFile, reason: str, parts: Mapping[str, str]) -> Case:
    return Case(id=case_id, role="labelled", sources=(file,), read=partial(reject, reason),
                group=patient_of(case_id), metadata=parts)


# ----------------------------------------------------------------------------------------------------------------------
# The split


def _fold_names(options: Options) -> tuple[str, ...]:
    return tuple(f"sacps_{ratio}%" for ratio in options.ratios)


def _part_names(options: Options) -> tuple[str, ...]:
    """The lists of the split file that the chosen folds need."""
    return ("test", "val", *(f"train_0.{ratio[0]}_{kind}" for ratio in options.ratios for kind in "lu"))


def _folds(options: Options, labelled: Sequence[str], images: Mapping[str, Any]) -> dict[str, Fold]:
    if options.split is None:
        return {}
    if options.split_file is None:
        return draw_folds(labelled, options.ratios, options.seed)
    folds = _read_folds(options)
    published_splits.check_usable(
        folds, labelled, images, options.split_file,
        advice=": give --validation-labels, or let us draw another split without --split-file")
    return folds


def _read_folds(options: Options) -> dict[str, Fold]:
    parts = published_splits.read_parts(options.split_file, _part_names(options))
    return {name: published_splits.assign({"train": parts[f"train_0.{ratio[0]}_l"],
                                           "unlabelled": parts[f"train_0.{ratio[0]}_u"],
                                           "val": parts["val"], "test": parts["test"]}, options.split_file)
            for name, ratio in zip(_fold_names(options), options.ratios, strict=True)}


def draw_folds(labelled: Sequence[str], ratios: Sequence[str], seed: int) -> dict[str, Fold]:
    """A split of our own: the paper's proportions of the labelled cases, no patient in two of its parts.

    The sets labelled at 10, 20 and 30 %, all training cases, and these with the validation cases are nested, in this
    order. The cases and the seed alone decide, whichever ratios are asked for.

    Returns:
        fold name → id → part.

    Raises:
        UserError: too few cases for all parts to exist and all ratios to differ.
    """
    share = Fraction(len(labelled), NUM_TRAIN + NUM_VAL + NUM_TEST)
    sizes = [NUM_TRAIN * share * int(ratio) / 100 for ratio in RATIOS]
    subsets = nested_subsets({case: patient_of(case) for case in labelled},
                             [*sizes, NUM_TRAIN * share, (NUM_TRAIN + NUM_VAL) * share], seed)
    *kept, train, train_and_val = [set(subset) for subset in subsets]
    if len({len(part) for part in (*kept, train, train_and_val, labelled)}) < len(subsets) + 1:
        raise UserError(f"{len(labelled)} labelled cases are too few for the split of the SA-CPS paper ({NUM_TRAIN} "
                        f"training, {NUM_VAL} validation and {NUM_TEST} test cases): leave --split out")

    def part_of(case: str, labelled_here: set[str]) -> str:
        if case in train:
            return "train" if case in labelled_here else "unlabelled"
        return "val" if case in train_and_val else "test"

    return {f"sacps_{ratio}%": {case: part_of(case, kept[RATIOS.index(ratio)]) for case in labelled}
            for ratio in ratios}


# ----------------------------------------------------------------------------------------------------------------------
# One case


def read_case(image_file: SourceFile, label_file: SourceFile | None, lungs_file: SourceFile | None) -> CaseContent:
    """One CT, its label and its lungs as LPS arrays. Raises UserError with the reason why it cannot be used."""
    stored = read_volume(image_file)
    layout, repairs, metadata = None, (), {}
    if lungs_file is not None:
        layout, repairs, metadata = _with_true_sides(to_lps(read_volume(lungs_file)))
    return CaseContent((compact(to_lps(stored)),), None if label_file is None else to_lps(read_volume(label_file)),
                       layout, repairs=(*turned(stored), *repairs), metadata=metadata)


def _with_true_sides(lungs: SimpleITK.Image) -> tuple[SimpleITK.Image, tuple[str, ...], dict[str, float]]:
    """Lung mask in LPS with 1 on the patient's left and 2 on the right; what was done for it, and the agreement.

    The published pseudo-masks have 1 on the left. In two of ten (A-0004, A-0108: small fields of view, lungs of 0.04
    and 0.17 litres) they change sides from slice to slice.
    """
    import SimpleITK
    values = SimpleITK.GetArrayFromImage(lungs)             # [z, y, x]; x grows to the patient's left
    x = np.nonzero(values)[2]
    if x.size == 0:
        return lungs, (), {}
    on_the_left = np.arange(values.shape[2]) > x.mean()
    is_lung = (values == LEFT) | (values == RIGHT)          # other values stay, and reject the case
    by_position = np.where(is_lung, np.where(on_the_left, LEFT, RIGHT), values).astype(values.dtype)
    agreement = float((values == by_position)[is_lung].mean()) if is_lung.any() else 1.0
    metadata = {"lungs_on_their_side": round(agreement, 4)}
    if agreement >= _AGREES:
        return lungs, (), metadata
    if agreement <= 1 - _AGREES:
        sides, repair = np.where(is_lung, LEFT + RIGHT - values, values).astype(values.dtype), \
            "lung mask: 1 was the right lung, exchanged with 2"
    else:
        sides, repair = by_position, "lung mask: sides mixed up, each voxel got the side it lies on"
    mended = SimpleITK.GetImageFromArray(sides)
    mended.CopyInformation(lungs)
    return mended, (repair,), metadata
