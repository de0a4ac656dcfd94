"""A small copy of the COVID-19-20 challenge's download: its tree, names with suffixes, some volumes stored from head to
feet, phantom chest CTs. The ids are real ones of every part of the published split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tests.makers.volumes import patient, write_volume

PREFIX = "volume-covid19-A-"
TRAIN = ("0003", "0014", "0044", "0047_1", "0133", "0196_0", "0255", "0698")
VALIDATION = ("0004", "0180_0", "0490", "0697")         # published split: val, test, val, val
LPI = ("0490", "0697")                                  # as geometry.json says; 0255 too, so that a label is turned
AXES = {**dict.fromkeys(LPI, "LPI"), "0255": "LPI"}


def write_tree(root: Path, size: int = 64, num_slices: int = 24) -> Path:
    """Write `root/COVID-19-20_v2`, the labels of `VALIDATION` to `root/validation_labels` and the lungs of all cases to
    `root/lungs`; return the first."""
    source = root / "COVID-19-20_v2"
    for index, number in enumerate((*TRAIN, *VALIDATION)):
        case = patient(index, size=size, num_slices=num_slices)
        axes, case_id, is_train = AXES.get(number, "LPS"), PREFIX + number, number in TRAIN
        folder = source / ("Train" if is_train else "Validation")
        write_volume(case.image, case.spacing, folder / f"{case_id}_ct.nii.gz", axes)
        label = (folder if is_train else root / "validation_labels") / f"{case_id}_seg.nii.gz"
        write_volume(case.label, case.spacing, label, axes)
        write_volume(case.layout, case.spacing, root / "lungs" / f"{case_id}.nii.gz", axes)
    return source


def write_names(root: Path, ids: Iterable[str], validation: Iterable[str] = ()) -> Path:
    """File names without content: Train with labels, Validation without."""
    source, validation = root / "COVID-19-20_v2", set(validation)
    for case_id in ids:
        folder = source / ("Validation" if case_id in validation else "Train")
        for kind in ("ct",) if case_id in validation else ("ct", "seg"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{case_id}_{kind}.nii.gz").touch()
    return source


def write_workbook(parts: Mapping[str, Iterable[str]], path: Path) -> Path:
    """A split as an Excel sheet, one column a part."""
    import itertools

    import openpyxl
    book = openpyxl.Workbook()
    book.active.append(["not the split"])
    sheet = book.create_sheet("split")
    sheet.append(list(parts))
    for row in itertools.zip_longest(*parts.values()):
        sheet.append(row)
    book.save(path)
    return path


def mix_sides(lungs: np.ndarray) -> np.ndarray:
    """Left and right exchanged in every other slice [z, y, x]."""
    mixed = lungs.copy()
    mixed[::2] = np.array([0, 2, 1], lungs.dtype)[lungs[::2]]
    return mixed
