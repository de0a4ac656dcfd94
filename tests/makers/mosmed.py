"""Small copies of MosMedData and of its test volumes: the exact tree, LAS axes, int16 masks, phantom chest CTs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from tests.makers.volumes import patient, phantom, write_volume

# Number of the study → category; those of 0255-0304 have masks.
STUDIES = {1: "CT-0", 2: "CT-0", 255: "CT-1", 256: "CT-1", 257: "CT-1", 258: "CT-1", 295: "CT-1", 296: "CT-1",
           305: "CT-1", 939: "CT-2", 1064: "CT-3", 1109: "CT-4"}
MASKED = range(255, 305)
RATERS = {"1.2.840.113619.2.379.10": (), "1.2.840.113619.2.379.20": ("anna", "boris"),
          "1.2.840.113619.2.379.30": ("anna", "boris", "vera")}
TURNED = "1.2.840.113619.2.379.30"      # stored with its indices growing to P, L, I under a header that says R, A, S


def write_tree(root: Path, size: int = 64, num_slices: int = 24) -> Path:
    """Write `root/COVID19_1110` with a study of each kind and return it."""
    source = root / "COVID19_1110"
    for index, number in enumerate(STUDIES):
        case = patient(index, size=size, num_slices=num_slices)
        write_volume(case.image, case.spacing, study_file(source, number), "LAS")
        if number in MASKED:
            write_volume(case.label.astype(np.int16), case.spacing, mask_file(source, number), "LAS")
    write_registry(source)
    (source / "LICENSE").write_text("CC BY-NC-ND 3.0")
    (source / "README_EN.md").write_text("MosMedData")
    return source


def write_test_tree(root: Path, size: int = 64, num_slices: int = 24) -> Path:
    """Write `root/test` with one, two and three raters, who disagree about some slices; return it."""
    test = root / "test"
    for index, (case_id, raters) in enumerate(RATERS.items()):
        case = phantom(index, size=size, num_slices=num_slices)
        write = write_turned if case_id == TURNED else write_volume
        write(case.image, case.spacing, test / "covid" / "images" / f"{case_id}.nii.gz")
        if not raters:
            write(case.label, case.spacing, test / "covid" / "masks" / f"{case_id}.nii.gz")
        for number, rater in enumerate(raters):
            write(seen_by(number, case.label), case.spacing, test / "covid" / "masks" / case_id / f"{rater}.nii.gz")
    for kind in ("bacterial_pneumonia", "nodules", "normal"):
        case = phantom(0, size=size, num_slices=num_slices)
        write_volume(case.image, case.spacing, test / kind / "images" / f"{kind}_1.nii.gz")
    return test


def write_turned(array: np.ndarray, spacing: tuple[float, ...], path: Path) -> None:
    """Write an LPS array [z, y, x] as PLI, with a header that says RAS."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array[::-1].transpose(0, 2, 1)))
    image.SetSpacing((float(spacing[1]), float(spacing[2]), float(spacing[0])))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def seen_by(number: int, label: np.ndarray) -> np.ndarray:
    """The lesions that a rater marks: each misses every third slice, not the same ones as the others."""
    seen = label.copy()
    seen[number::3] = 0
    return seen


def write_real_masks(root: Path, masks: Sequence[Path]) -> Path:
    """Write `root/COVID19_1110` around published masks; each CT has its mask's geometry, and values that tell voxels
    apart."""
    source = root / "COVID19_1110"
    for mask in masks:
        number = int(mask.name.split("_")[1])
        (source / "masks").mkdir(parents=True, exist_ok=True)
        shutil.copy(mask, mask_file(source, number))
        geometry = SimpleITK.ReadImage(str(mask))
        z, y, x = np.ogrid[tuple(map(slice, geometry.GetSize()[::-1]))]
        image = SimpleITK.GetImageFromArray((x + 2 * y + 3 * z - 1024).astype(np.int16))
        image.CopyInformation(geometry)
        study_file(source, number).parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(study_file(source, number)), useCompression=True)
    return source


def write_names(root: Path) -> Path:
    """All file names of the publication, test volumes apart, without content."""
    source = root / "COVID19_1110"
    for number in range(1, 1111):
        _touch(study_file(source, number))
        if number in MASKED:
            _touch(mask_file(source, number))
    return source


def write_test_names(root: Path, ids: Sequence[str]) -> Path:
    """File names of test volumes, one rater each, without content."""
    for case_id in ids:
        for kind in ("images", "masks"):
            _touch(root / "test" / "covid" / kind / f"{case_id}.nii.gz")
    return root / "test"


def study_file(source: Path, number: int) -> Path:
    return source / "studies" / category_of(number) / f"study_{number:04d}.nii.gz"


def mask_file(source: Path, number: int) -> Path:
    return source / "masks" / f"study_{number:04d}_mask.nii.gz"


def category_of(number: int) -> str:
    return f"CT-{sum(number > last for last in (254, 938, 1063, 1108))}"


def write_registry(source: Path, rows: Sequence[tuple] | None = None, header: Sequence[str] = (
        "study_id", "category", "study_file", "mask_file")) -> None:
    """dataset_registry.xlsx; by default with a row for each of `STUDIES`."""
    import openpyxl
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "MosMedData COVID19_1110"
    sheet.append(header)
    for row in registry_rows() if rows is None else rows:
        sheet.append(row)
    book.save(source / "dataset_registry.xlsx")


def registry_rows() -> list[tuple]:
    return [(number, category, f"/studies/{category}/study_{number:04d}.nii.gz",
             f"/masks/study_{number:04d}_mask.nii.gz" if number in MASKED else None)
            for number, category in STUDIES.items()]


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
