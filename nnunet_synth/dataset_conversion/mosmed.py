"""MosMedData (COVID19_1110): 1,110 chest CTs of Moscow's outpatients, 50 of them with lesion masks.

Where: https://mosmed.ai/datasets/covid19_1110. The 32 test volumes: see https://github.com/neuro-ml/COVID-19-Triage.
Licence: CC BY-NC-ND 3.0 as LICENSE and README state, so converted data must not be passed on. (A link in the README
leads to CC BY 4.0; LICENSE is the stricter one.) For the test volumes no licence was found.
Cite: S. P. Morozov et al., MosMedData: Chest CT Scans with COVID-19 Related Findings Dataset, arXiv:2005.06465, 2020;
for the test volumes M. Goncharov et al., CT-based COVID-19 triage, Medical Image Analysis 71:102054, 2021.
Size: 1,110 volumes of 512 x 512 x some 40 voxels, about 20 MB each uncompressed.

SOURCE is the folder of the download, an archive of it, or a folder that holds either:

    studies/CT-0/study_0001.nii.gz      CT-0 0001-0254, CT-1 0255-0938, CT-2 0939-1063, CT-3 1064-1108, CT-4 1109-1110
    masks/study_0255_mask.nii.gz        50: 0255-0304; 1 = ground glass or consolidation
    dataset_registry.xlsx               study_id, category, study_file, mask_file; may be missing

Studies with a mask become imagesTr and labelsTr, the others imagesUl. The registry's category, CT-0 to CT-4 by the
affected share of the lungs, is kept as metadata; without a registry it is that of the folder.

The 32 test volumes of Goncharov et al. become imagesTs and labelsTs. They are looked for in SOURCE, or in --test-source
PATH, which is the folder `test`, one above it, or an archive:

    test/covid/images/ID.nii.gz
    test/covid/masks/ID.nii.gz          or, with several raters, test/covid/masks/ID/RATER.nii.gz

Of several raters the majority is taken, lesion where they are even; their number and pairwise Dice go into the
metadata. The other kinds (bacterial_pneumonia, nodules, normal) have no masks and are not read. Nothing says how these
volumes lie: their publisher's scripts take the arrays as stored while they reorient MosMedData, and the SA-CPS paper's
ids of them end in _rot. So lungs, spine and heart are asked which axis is which, and an array that contradicts its
header is turned; the report says which, and evidence_... in metadata.csv, -1 to 1, how sure that is.

--split sacps is the setting of the SA-CPS paper, the fold "sacps" of splits_final.json: 40 labelled (0255-0294), 10
validation (0295-0304), 1,060 unlabelled and the 32 test cases. --split-file FILE takes the ids from the published
MOS1000_splits.json, or from an .xlsx with the columns test, val, train_label, train_unlabel. Test volumes may be called
with or without the paper's _rot.

Only every 10th slice was kept, hence 8 mm between slices: a 2d configuration suits these images better than 3d.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnunet_synth.dataset_conversion import published_splits
from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, Role, reject
from nnunet_synth.dataset_conversion.published_splits import Fold
from nnunet_synth.dataset_conversion.sources import SourceFile, list_files
from nnunet_synth.dataset_conversion.true_axes import find_true_axes
from nnunet_synth.dataset_conversion.volumes import compact, read_volume, to_lps, turned
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

    from nnunet_synth.dataset_conversion.writer import CaseReport

HELP = "MosMedData (COVID19_1110): 50 labelled and 1,060 unlabelled chest CTs, and 32 to test on"
EXAMPLE = ("nnunet_synth convert mosmed ~/downloads/COVID19_1110 -d 521 --test-source ~/downloads/test.zip "
           "--split sacps --jobs 4")

LABELS = {"background": 0, "infection": 1}
FOLD = "sacps"
NUM_TEST = 32
# The parts of MOS1000_splits.json, and `ids_sha256` of its lists.
PARTS = {"train_label": "train", "train_unlabel": "unlabelled", "val": "val", "test": "test"}
PUBLISHED = {
    "test": "0803ed09a52088044a9ca498969dc0ecb63753c3cb4384eb33bfd7513f45e253",
    "val": "aa7524129cdfdd8415624b542629caf359c9c0d30ce8678c05d891e9a0ee70e7",
    "train_label": "e6ed8942394d536715adceec2fd44944954168641c0ac9579d7d25a9ac2036c9",
    "train_unlabel": "7cb3a818fa08d97b94765a44dcda8300c7780a26fc77ff652dcb094eef3c89c4",
}
PUBLISHED_TEST = "97bb19fb8a125063838c7a0be04f1b99e012b5ad80f30a8c4935ad635bee9632"     # without _rot

_STUDY = re.compile(r"(study_\d+)\.nii(?:\.gz)?")
_MASK = re.compile(r"(study_\d+)_mask\.nii(?:\.gz)?")
_TEST_IMAGE = re.compile(r"(?:.*/)?covid/images/([^/]+?)\.nii(?:\.gz)?")
_TEST_MASK = re.compile(r"(?:.*/)?covid/masks/(?:(?P<id>[^/]+)/)?(?P<name>[^/]+?)\.nii(?:\.gz)?")
_REGISTRY = "dataset_registry.xlsx"


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        test_source: folder or archive of the 32 test volumes; None = look for them in SOURCE.
        split: "sacps" or None.
        split_file: with the ids of the published split; None = the same ids, built in.
    """

    test_source: str | Path | None = None
    split: str | None = None
    split_file: str | Path | None = None

    def __post_init__(self) -> None:
        if self.split not in (None, FOLD):
            raise UserError(f"mosmed has no split {self.split!r}: it has {FOLD}")
        if self.split is None and self.split_file is not None:
            raise UserError(f"--split-file belongs to --split {FOLD}: add it")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--test-source", type=Path, metavar="PATH",
                        help="folder or archive of the 32 test volumes (default: they are looked for in SOURCE)")
    parser.add_argument("--split", choices=(FOLD,), help="fold of the SA-CPS paper; without it, nnU-Net's five")
    parser.add_argument("--split-file", type=Path, metavar="FILE",
                        help="take its ids from a file, .json or .xlsx (default: the published ones)")


def describe(options: Options) -> DatasetDescription:
    """What `dataset.json` says about it."""
    notes = ["CC BY-NC-ND 3.0: neither the converted images nor other changed versions may be passed on",
             "every 10th slice was kept, hence 8 mm between slices: prefer a 2d configuration",
             "outpatients; the 32 test volumes come from inpatient clinics, a few weeks earlier"]
    if options.split_file is not None:
        parts = published_splits.read_parts(options.split_file, list(PARTS))
        notes.append(f"the split of {Path(options.split_file).name} {published_splits.compared(parts, PUBLISHED)}")
    return DatasetDescription(
        name="MosMed",
        channel_names=("CT",),
        labels=LABELS,
        file_ending=".nii.gz",
        reader_writer="SimpleITKIO",
        num_dimensions=3,
        licence="CC BY-NC-ND 3.0 (LICENSE and README; a link in the README leads to CC BY 4.0); none found for the "
                "test volumes",
        citation="S. P. Morozov et al., MosMedData: Chest CT Scans with COVID-19 Related Findings Dataset, "
                 "arXiv:2005.06465, 2020; test volumes: M. Goncharov et al., CT-based COVID-19 triage: Deep multitask "
                 "learning improves joint identification and severity quantification, Medical Image Analysis "
                 "71:102054, 2021, doi:10.1016/j.media.2021.102054",
        source="https://mosmed.ai/datasets/covid19_1110",
        description="Chest CT with COVID-19 related findings, ground glass and consolidation as one class",
        notes=tuple(notes),
    )


# ----------------------------------------------------------------------------------------------------------------------
# What lies there


def find_cases(source: str | Path, options: Options) -> Iterator[Case]:
    """Yield the studies in the order of their ids, then the test volumes.

    What the registry or a mask promises and the download lacks is yielded too, as a case that is rejected.

    Raises:
        UserError: `source` is not this dataset; two masks of one study; a registry, a test set or a split that cannot
            be used.
    """
    files = list(list_files(source))
    studies, masks = _by_id(files, _STUDY), _by_id(files, _MASK)
    if not studies:
        raise UserError(f"{source} holds no studies/CT-*/study_XXXX.nii.gz: it is not MosMedData (COVID19_1110)")
    registry_file = next((file for file in files if file.path.name == _REGISTRY), None)
    registry = read_registry(registry_file) if registry_file else {}
    test = _find_test(source if options.test_source is None else options.test_source,
                      files if options.test_source is None else list(list_files(options.test_source)),
                      is_required=options.test_source is not None)
    fold = _fold(options, list(test))
    if options.split is not None:
        published_splits.check_usable({FOLD: fold}, studies.keys() & masks.keys(), studies,
                                      options.split_file or "the SA-CPS paper's split")

    for case_id in sorted({*studies, *masks, *registry}):
        if len(masks.get(case_id, [])) > 1:
            raise UserError(f"{masks[case_id][0]} and {masks[case_id][1]} would both label {case_id}: remove one")
        mask = masks[case_id][0] if case_id in masks else None
        row = registry.get(case_id, RegistryRow("", has_mask=False))
        parts = {FOLD: fold[case_id]} if case_id in fold else {}
        for study in studies.get(case_id, []):
            if mask is None and "test" in parts.values():
                continue                            # nothing to score it by, and in the pool it would be trained on
            if mask is None and row.has_mask:
                yield _rejected(case_id, "labelled", study, f"the mask of {case_id} is in the registry but not in the "
                                "download", parts)
            else:
                yield _study_case(case_id, study, mask, row.category, parts)
        if case_id not in studies and mask is not None:
            yield _rejected(case_id, "labelled", mask, f"{mask} is a mask without a study", parts)
        elif case_id not in studies:
            yield _rejected(case_id, "labelled" if row.has_mask else "unlabelled", registry_file,
                            f"{case_id} is in the registry but not in the download", parts)
    for case_id, volume in test.items():
        yield volume.as_case(case_id, {} if options.split is None else {FOLD: "test"})


def make_splits(cases: Sequence[CaseReport], options: Options) -> list[dict[str, Any]]:
    """The fold "sacps", of what was written; prints what it lacks of the split."""
    if options.split is None:
        return []
    test = [case.id for case in cases if case.role == "test"]
    print(*published_splits.report({FOLD: _fold(options, test)}, cases), sep="\n")
    if published_splits.ids_sha256(map(_without_rot, test)) == PUBLISHED_TEST:
        print(f"the {NUM_TEST} test cases are those of the SA-CPS paper (SHA-256 of their ids)")
    elif test:
        print(f"the {len(test)} test cases are not the {NUM_TEST} of the SA-CPS paper (SHA-256 of their ids)")
    else:
        print(f"there are no test cases: --test-source takes the {NUM_TEST} of the SA-CPS paper")
    return published_splits.folds_of([FOLD], cases)


def _by_id(files: Sequence[SourceFile], pattern: re.Pattern[str]) -> dict[str, list[SourceFile]]:
    found: dict[str, list[SourceFile]] = {}
    for file in files:
        if match := pattern.fullmatch(file.path.name):
            found.setdefault(match[1], []).append(file)
    return found


class RegistryRow(NamedTuple):
    category: str
    has_mask: bool


def read_registry(file: SourceFile) -> dict[str, RegistryRow]:
    """Study id → what dataset_registry.xlsx says of it. Raises UserError where it is damaged or another table."""
    columns = ("study_id", "category", "study_file", "mask_file")
    for rows in published_splits.read_sheets(io.BytesIO(file.read_bytes()), file):
        header = rows[0] if rows else []
        if not set(columns) <= set(header):
            continue
        studies: dict[str, RegistryRow] = {}
        for row in rows[1:]:
            number, category, _, mask = (row[header.index(column)] for column in columns)
            if number is None:
                continue
            if not str(number).isdecimal():
                raise UserError(f"{file}: study_id {number!r} is not a number")
            case_id = f"study_{int(number):04d}"
            if case_id in studies:
                raise UserError(f"{file} lists study_id {number} twice: remove one of the rows")
            studies[case_id] = RegistryRow(str(category or ""), has_mask=bool(mask))
        return studies
    raise UserError(f"{file} has no sheet with the columns {', '.join(columns)}: copy it again, or remove it")


def _study_case(case_id: str, study: SourceFile, mask: SourceFile | None, category: str,
                parts: Mapping[str, str]) -> Case:
    folder = study.path.parent.name if re.fullmatch(r"CT-\d", study.path.parent.name) else ""
    metadata = {"category": category or folder, **parts}
    remarks = ()
    if category and folder and category != folder:
        metadata["category_of_folder"] = folder
        remarks = (f"category {category} of the registry kept, the folder is {folder}",)
    role: Role = "test" if "test" in parts.values() else "labelled" if mask else "unlabelled"
    return Case(id=case_id, role=role, sources=(study, mask) if mask else (study,),
                read=partial(read_case, study, mask, remarks), metadata=metadata)


def _rejected(case_id: str, role: Role, file: SourceFile, reason: str, parts: Mapping[str, str]) -> Case:
    return Case(id=case_id, role=role, sources=(file,), read=partial(reject, reason), metadata=parts)


@dataclass
class _Volume:
    """One of the 32, as far as it is there.

    Attributes:
        image: its CT.
        masks: rater → mask; a single mask has the rater "".
    """

    image: SourceFile | None = None
    masks: dict[str, SourceFile] = field(default_factory=dict)

    def as_case(self, case_id: str, parts: Mapping[str, str]) -> Case:
        sources = (*([self.image] if self.image else []), *self.masks.values())
        if self.image is None or not self.masks:
            lacking = "image" if self.image is None else "mask"
            return _rejected(case_id, "test", sources[0], f"{sources[0]} has no {lacking} in covid/{lacking}s", parts)
        return Case(id=case_id, role="test", sources=sources, read=partial(read_test_case, self.image, self.masks),
                    metadata=parts)


def _find_test(source: str | Path, files: Sequence[SourceFile], is_required: bool) -> dict[str, _Volume]:
    """Test id → what there is of it."""
    volumes: dict[str, _Volume] = {}
    for file in files:
        if image := _TEST_IMAGE.fullmatch(str(file.path)):
            volume = volumes.setdefault(image[1], _Volume())
            if volume.image is not None:
                raise UserError(f"{volume.image} and {file} would both be test case {image[1]}: remove one")
            volume.image = file
        elif mask := _TEST_MASK.fullmatch(str(file.path)):
            rater = mask["name"] if mask["id"] else ""
            masks = volumes.setdefault(mask["id"] or mask["name"], _Volume()).masks
            if rater in masks or (masks and "" in (rater, *masks)):
                raise UserError(f"{next(iter(masks.values()))} and {file} are masks of one test case: remove one, or "
                                "put those of all raters into a folder of its id")
            masks[rater] = file
    if is_required and not volumes:
        raise UserError(f"{source} holds no covid/images/*.nii.gz: give the folder `test` of the 32 test volumes, or "
                        "its archive")
    return dict(sorted(volumes.items()))


# ----------------------------------------------------------------------------------------------------------------------
# The split


def _fold(options: Options, test_ids: Sequence[str]) -> Fold:
    """Id → part. A file's test volumes are those in `test_ids`, whether or not either of them ends in _rot."""
    if options.split is None:
        return {}
    if options.split_file is None:
        def part_of(number: int) -> str:
            return "train" if 255 <= number <= 294 else "val" if 295 <= number <= 304 else "unlabelled"
        return {f"study_{number:04d}": part_of(number) for number in range(1, 1111)}
    parts = published_splits.read_parts(options.split_file, list(PARTS))
    called = {_without_rot(case): case for case in test_ids}
    parts["test"] = [called.get(_without_rot(case), case) for case in parts["test"]]
    return published_splits.assign({PARTS[name]: ids for name, ids in parts.items()}, options.split_file)


def _without_rot(case_id: str) -> str:
    return case_id.removesuffix("_rot")


# ----------------------------------------------------------------------------------------------------------------------
# One case


def read_case(study_file: SourceFile, mask_file: SourceFile | None, remarks: tuple[str, ...] = ()) -> CaseContent:
    """One study and its mask as LPS arrays. Raises UserError with the reason why it cannot be used."""
    stored = read_volume(study_file)
    return CaseContent((compact(to_lps(stored)),), None if mask_file is None else to_lps(read_volume(mask_file)),
                       repairs=(*turned(stored), *remarks))


def read_test_case(image_file: SourceFile, mask_files: Mapping[str, SourceFile]) -> CaseContent:
    """One test volume and the lesions that most of its raters saw, as arrays that are LPS by anatomy."""
    stored = read_volume(image_file)
    image = compact(to_lps(stored))
    masks = {rater: to_lps(read_volume(file)) for rater, file in mask_files.items()}
    label, metadata = next(iter(masks.values())), {"raters": len(masks)}
    if len(masks) > 1:
        label, agreement = _consensus(masks, mask_files)
        metadata |= agreement
    axes = find_true_axes(image)
    metadata |= {f"evidence_{name}": round(value, 2) for name, value in
                 zip(("feet_to_head", "front_to_back", "right_to_left"), axes.finding.evidence, strict=True)}
    return CaseContent((axes.put_right(image),), axes.put_right(label), repairs=(*turned(stored), *axes.repairs),
                       metadata=metadata)


def _consensus(masks: Mapping[str, SimpleITK.Image],
               files: Mapping[str, SourceFile]) -> tuple[SimpleITK.Image, dict[str, Any]]:
    """The majority of several raters, lesion where they are even, and how well they agree."""
    import SimpleITK

    from nnunet_synth.evaluation.overlap import dice
    arrays = {}
    reference = next(iter(masks.values()))
    for rater, mask in masks.items():
        if not _on_one_grid(mask, reference):
            raise UserError(f"{files[rater]} differs in shape, spacing, origin or direction from the mask of another "
                            "rater")
        array = SimpleITK.GetArrayViewFromImage(mask)
        if not np.isin(array, (0, 1)).all():
            raise UserError(f"{files[rater]} holds other values than 0 and 1: it is no lesion mask")
        arrays[rater] = array.astype(bool)
    votes = sum(array.astype(np.uint8) for array in arrays.values())
    label = SimpleITK.GetImageFromArray((2 * votes >= len(arrays)).astype(np.uint8))
    label.CopyInformation(reference)
    pairs = {f"{one} {other}": None if not (arrays[one].any() or arrays[other].any()) else
             round(dice(arrays[one], arrays[other]), 4) for one, other in itertools.combinations(arrays, 2)}
    known = [value for value in pairs.values() if value is not None]
    mean = {"rater_dice_mean": round(float(np.mean(known)), 4)} if known else {}
    return label, {"rater_dice": pairs, **mean}


def _on_one_grid(image: SimpleITK.Image, other: SimpleITK.Image) -> bool:
    return image.GetSize() == other.GetSize() and all(
        np.allclose(getattr(image, f"Get{what}")(), getattr(other, f"Get{what}")(), atol=1e-3)
        for what in ("Spacing", "Origin", "Direction"))
