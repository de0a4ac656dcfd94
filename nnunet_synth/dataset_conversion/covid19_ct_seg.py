"""COVID-19-CT-Seg: 20 chest CTs of 19 COVID-19 patients with masks of lungs and infection.

Where: https://zenodo.org/records/3757476, four zip archives of about 1 GB together.
Licence: CC BY 4.0 on Zenodo, CC BY-NC-SA in the authors' repository JunMa11/COVID-19-CT-Seg-Benchmark; the images come
from the Coronacases Initiative and from Radiopaedia.
Cite: J. Ma et al., COVID-19 CT Lung and Infection Segmentation Dataset, Zenodo, 2020, doi:10.5281/zenodo.3757476, and
J. Ma et al., Toward data-efficient learning: A benchmark for COVID-19 CT lung and infection segmentation, Medical
Physics 48(3):1197-1210, 2021, doi:10.1002/mp.14676.

SOURCE is the folder of the archives, of the extracted archives (each in the folder of its name, because all hold the
same 20 file names), or one archive that holds the four folders:

    COVID-19-CT-Seg_20cases.zip      coronacases_001.nii.gz … coronacases_010.nii.gz, radiopaedia_4_85506_1.nii.gz …
    Infection_Mask.zip               the same names; 1 = infection
    Lung_Mask.zip                    the same names; 1 = left lung, 2 = right lung
    Lung_and_Infection_Mask.zip      the same names; 1 = left lung, 2 = right lung, 3 = infection

--task infection (the default) segments the infection and keeps the lungs as layouts; it needs the first three.
--task lung-infection segments left lung, right lung and infection; it needs the first and the last. Other files are
left alone.

The radiopaedia volumes were published as gray values 0 to 255 of the window -1250 to 250 HU and contradict their
headers (front and back, one also head and feet). Both are read from the voxels of each case, repaired, and reported:
the written images are in HU, in LPS order as the anatomy says. A volume that somebody has put right already stays as it
is.

splits_final.json gets the ten official folds, named 20_80_fold0 to 20_80_fold4 (train 4, test 16; indices 0 to 4) and
80_20_fold0 to 80_20_fold4 (train 16, test 4); --folds takes only one kind. The two scans of one patient,
radiopaedia_10_85902_1 and _3, are parted by four of them. --test-set ID adds the 50 labelled cases of a converted
MosMedData to each fold as a second test set.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, reject
from nnunet_synth.dataset_conversion.chest_orientation import LEFT, RIGHT, find_orientation
from nnunet_synth.dataset_conversion.hu_harmonisation import harmonise, measure_tissue
from nnunet_synth.dataset_conversion.sources import SourceFile, list_files
from nnunet_synth.dataset_conversion.volumes import read_volume, to_lps, turned
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object

if TYPE_CHECKING:
    import SimpleITK

    from nnunet_synth.dataset_conversion.writer import CaseReport

HELP = "COVID-19-CT-Seg (Zenodo 3757476): 20 chest CTs with lungs and infection, official folds"
EXAMPLE = "nnunet_synth convert covid19-ct-seg ~/downloads/COVID-19-CT-Seg -d 523 --test-set 521 --jobs 4"

Task = Literal["infection", "lung-infection"]
LUNG_LABELS = {"left_lung": LEFT, "right_lung": RIGHT}
TASKS: dict[str, dict[str, int]] = {
    "infection": {"background": 0, "infection": 1},
    "lung-infection": {"background": 0, **LUNG_LABELS, "infection": 3},
}
IMAGES = "COVID-19-CT-Seg_20cases"
LABELS_OF = {"infection": "Infection_Mask", "lung-infection": "Lung_and_Infection_Mask"}
LUNGS_OF = {"infection": "Lung_Mask", "lung-infection": "Lung_and_Infection_Mask"}

# The official folds (Task1_COVID_datasplit.pkl and Task1_COVID_82_datasplit.pkl of the authors' repository) are made of
# five groups: 20/80 trains on one and tests on the others, 80/20 the other way round.
GROUPS = (
    ("coronacases_007", "coronacases_008", "radiopaedia_36_86526_0", "radiopaedia_4_85506_1"),
    ("coronacases_004", "coronacases_009", "radiopaedia_14_85914_0", "radiopaedia_7_85703_0"),
    ("coronacases_001", "coronacases_010", "radiopaedia_10_85902_1", "radiopaedia_29_86491_1"),
    ("coronacases_003", "coronacases_005", "radiopaedia_27_86410_0", "radiopaedia_40_86625_0"),
    ("coronacases_002", "coronacases_006", "radiopaedia_10_85902_3", "radiopaedia_29_86490_1"),
)
CASES = tuple(sorted(case for group in GROUPS for case in group))
ONE_PATIENT = ("radiopaedia_10_85902_1", "radiopaedia_10_85902_3")
FOLDS = ("both", "20-80", "80-20")


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        task: a key of `TASKS`.
        folds: which of the official folds, one of `FOLDS`.
        test_set: id of a converted MosMedData; its labelled cases become a second test set of each fold.
    """

    task: Task = "infection"
    folds: str = "both"
    test_set: int | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"covid19-ct-seg has no task {self.task!r}: choose one of {', '.join(TASKS)}")
        if self.folds not in FOLDS:
            raise UserError(f"covid19-ct-seg has no folds {self.folds!r}: choose one of {', '.join(FOLDS)}")
        if self.test_set is not None and self.task != "infection":
            raise UserError("--test-set: MosMedData has no lung masks to test on, use --task infection")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=tuple(TASKS), default=Options.task,
                        help="what is to be segmented (default: %(default)s)")
    parser.add_argument("--folds", choices=FOLDS, default=Options.folds,
                        help="which of the official folds; 20-80 trains on 4 cases (default: %(default)s)")
    parser.add_argument("--test-set", type=int, metavar="ID",
                        help="dataset converted from MosMedData: its labelled cases become a second test set")


def describe(options: Options) -> DatasetDescription:
    """What `dataset.json` says about it."""
    return DatasetDescription(
        name="COVID19CTSeg",
        channel_names=("CT",),
        labels=TASKS[options.task],
        file_ending=".nii.gz",
        reader_writer="SimpleITKIO",
        num_dimensions=3,
        licence="CC BY 4.0 (Zenodo) or CC BY-NC-SA (the authors' repository): the statements conflict",
        citation="J. Ma et al., COVID-19 CT Lung and Infection Segmentation Dataset, Zenodo, 2020, "
                 "doi:10.5281/zenodo.3757476; J. Ma et al., Toward data-efficient learning: A benchmark for COVID-19 "
                 "CT lung and infection segmentation, Medical Physics 48(3):1197-1210, 2021, doi:10.1002/mp.14676",
        source="https://zenodo.org/records/3757476",
        description=f"Chest CT of COVID-19 patients, task {options.task}",
        layout_labels=LUNG_LABELS if options.task == "infection" else {},
        notes=("what the window -1250 to 250 HU cut off in the radiopaedia volumes (dense bone) cannot be recovered, "
               "and their HU come in steps of 5.9; lung_hu and soft_tissue_hu in metadata.csv tell how well the "
               "window fits each case",
               "where the anatomy contradicts a header, the array was reversed and the header kept; evidence_… in "
               "metadata.csv, -1 to 1, tells how sure that is",
               f"{' and '.join(ONE_PATIENT)} are one patient: the official 20/80 and 80/20 folds number 2 and 4 train "
               "on one of these scans and test on the other"),
    )


# ----------------------------------------------------------------------------------------------------------------------
# What lies there


def find_cases(source: str | Path, options: Options) -> Iterator[Case]:
    """Yield the 20 published cases; one of which a file is missing is rejected with this reason.

    Raises:
        UserError: `source` is not this dataset, an archive that the task needs is missing, a file is there twice, or
            the second test set cannot be used.
    """
    _second_test_set(options)
    needed = tuple(dict.fromkeys((IMAGES, LABELS_OF[options.task], LUNGS_OF[options.task])))
    files = _by_folder(source, needed)
    for folder in needed:
        if not files[folder]:
            raise UserError(f"{source} holds no {folder}.zip and no folder {folder} with the masks or images of "
                            "COVID-19-CT-Seg (Zenodo 3757476)")
    for case_id in CASES:
        of_case = {folder: files[folder][case_id] for folder in needed if case_id in files[folder]}
        missing = [folder for folder in needed if folder not in of_case]
        read = (partial(reject, f"{missing[0]} holds no {case_id}.nii.gz") if missing else
                partial(read_case, of_case, options.task))
        patient = ONE_PATIENT[0][:-len("_1")] if case_id in ONE_PATIENT else case_id
        yield Case(case_id, "labelled", tuple(of_case.values()), read, group=patient)


def _by_folder(source: str | Path, folders: Sequence[str]) -> dict[str, dict[str, SourceFile]]:
    """Folder → case id → file, of the published cases."""
    found: dict[str, dict[str, SourceFile]] = {folder: {} for folder in folders}
    for file in list_files(source):
        name = re.fullmatch(r"(.+)\.nii(?:\.gz)?", file.path.name)
        folder = file.path.parent.name
        if not name or name[1] not in CASES or folder not in found:
            continue
        if name[1] in found[folder]:
            raise UserError(f"{found[folder][name[1]]} and {file} are the same file of {folder}: remove one")
        found[folder][name[1]] = file
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Folds


def make_splits(cases: Sequence[CaseReport], options: Options) -> list[dict[str, Any]]:
    """The official folds, of the cases that were written."""
    written = {case.id for case in cases}
    test_set = _second_test_set(options)
    splits = []
    for kind in FOLDS[1:] if options.folds == "both" else (options.folds,):
        for index, group in enumerate(GROUPS):
            few = sorted(written & set(group))
            many = sorted(written - set(group))
            train, val = (few, many) if kind == "20-80" else (many, few)
            splits.append({"name": f"{kind.replace('-', '_')}_fold{index}", "train": train, "val": val,
                           **({"test_sets": test_set} if test_set else {})})
    return splits


def _second_test_set(options: Options) -> dict[str, list[str]]:
    """Name → ids of the labelled cases of a converted MosMedData; empty without --test-set."""
    if options.test_set is None:
        return {}
    from nnunet_synth.data.nnunet_folders import environment_folder, find_dataset
    from nnunet_synth.dataset_conversion import mosmed
    raw = environment_folder("nnUNet_raw")
    name = find_dataset(options.test_set)
    convert_again = "convert MosMedData again"
    description = read_object(raw / name / "dataset.json", convert_again, convert_again, "labels", "file_ending")
    source = description.get("nnunet_synth", {}).get("source")
    if source != mosmed.describe(mosmed.Options()).source:
        raise UserError(f"--test-set {options.test_set}: {name} was not converted from MosMedData")
    if description["labels"] != TASKS[options.task]:
        raise UserError(f"--test-set {options.test_set}: {name} has the labels {description['labels']}, this task has "
                        f"{TASKS[options.task]}")
    ending = description["file_ending"]
    return {name: sorted(label.name.removesuffix(ending) for label in (raw / name / "labelsTr").glob(f"*{ending}"))}


# ----------------------------------------------------------------------------------------------------------------------
# One case


def read_case(files: Mapping[str, SourceFile], task: Task) -> CaseContent:
    """One case in HU, its arrays in LPS order by anatomy. Raises UserError with the reason why it cannot be used.

    Args:
        files: folder of the download → file of this case.
    """
    import SimpleITK
    stored = read_volume(files[IMAGES])
    harmonised = harmonise(to_lps(stored))
    image = harmonised.image
    masks, moved = {}, []
    for folder, file in files.items():
        if folder != IMAGES:
            masks[folder], repairs = _on_grid(read_volume(file), file, image)
            moved += repairs

    hu = SimpleITK.GetArrayViewFromImage(image)
    lungs = SimpleITK.GetArrayViewFromImage(masks[LUNGS_OF[task]])
    finding = find_orientation(hu, lungs)
    tissue, doubts = measure_tissue(hu, lungs > 0)
    if task == "infection":
        _check_overlap(SimpleITK.GetArrayViewFromImage(masks[LABELS_OF[task]]) > 0, lungs > 0)
    litres = float(np.count_nonzero(lungs) * np.prod(image.GetSpacing()) / 1e6)
    if finding.is_renumbered:
        masks[LUNGS_OF[task]] = _renumbered(masks[LUNGS_OF[task]])
    axes = finding.reversed_axes
    return CaseContent(
        (_reversed(image, axes),), label=_reversed(masks[LABELS_OF[task]], axes),
        layout=_reversed(masks[LUNGS_OF[task]], axes) if task == "infection" else None,
        repairs=(*turned(stored), *harmonised.repairs, *moved, *finding.repairs, *doubts),
        metadata={**harmonised.metadata, **tissue, "lung_litres": round(litres, 2),
                  **{f"evidence_{name}": round(value, 2) for name, value in
                     zip(("feet_to_head", "front_to_back", "right_to_left"), finding.evidence, strict=True)}})


def _on_grid(mask: SimpleITK.Image, file: SourceFile, image: SimpleITK.Image,
             ) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    """The mask as an LPS array whose voxels are the image's, wherever its own origin says that they lie."""
    mask = to_lps(mask)
    if mask.GetSize() != image.GetSize():
        raise UserError(f"{file} has the shape {mask.GetSize()}, its image {image.GetSize()}: it is another case's")
    distance = float(np.linalg.norm(np.subtract(mask.GetOrigin(), image.GetOrigin())))
    mask.SetOrigin(image.GetOrigin())
    if distance < 0.1 * min(image.GetSpacing()):
        return mask, ()
    return mask, (f"origin of {file.path.parent.name} set to that of the image, {distance:.1f} mm away",)


def _check_overlap(infection: np.ndarray, lungs: np.ndarray) -> None:
    share = np.count_nonzero(infection & lungs) / max(np.count_nonzero(infection), 1)
    if infection.any() and share < 0.5:
        raise UserError(f"only {share:.0%} of the infection lies in the lungs: the masks do not fit each other")


def _reversed(image: SimpleITK.Image, axes: tuple[int, ...]) -> SimpleITK.Image:
    """The array [z, y, x] turned round along some axes inside the same box: the header stays."""
    import SimpleITK
    if not axes:
        return image
    result = SimpleITK.GetImageFromArray(np.flip(SimpleITK.GetArrayViewFromImage(image), axes))
    result.CopyInformation(image)
    return result


def _renumbered(lungs: SimpleITK.Image) -> SimpleITK.Image:
    import SimpleITK
    return SimpleITK.ChangeLabel(lungs, changeMap={LEFT: RIGHT, RIGHT: LEFT})
