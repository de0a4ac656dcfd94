"""A small copy of COVID-19-CT-Seg: four folders of 20 files, phantom chest CTs, with the quirks of the publication.

coronacases: HU, axes LAS. radiopaedia: gray values 0 to 255 of the window -1250 to 250 HU, arrays in LPS order under a
header that says LAS, so front and back are exchanged; `radiopaedia_7_85703_0` runs from head to feet besides.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from nnunet_synth.data.phantom import PhantomCase
from tests.makers import volumes
from tests.makers.volumes import write_volume

CASES = tuple([f"coronacases_{number:03d}" for number in range(1, 11)] + [
    f"radiopaedia_{name}" for name in (
        "4_85506_1", "7_85703_0", "10_85902_1", "10_85902_3", "14_85914_0", "27_86410_0", "29_86490_1", "29_86491_1",
        "36_86526_0", "40_86625_0")])
HEAD_FIRST = "radiopaedia_7_85703_0"
FOLDERS = ("COVID-19-CT-Seg_20cases", "Lung_Mask", "Infection_Mask", "Lung_and_Infection_Mask")


def write_tree(root: Path, size: int = 64, num_slices: int = 24) -> Path:
    """Write `root/COVID-19-CT-Seg` with the four folders and return it."""
    source = root / "COVID-19-CT-Seg"
    for case_id in CASES:
        truth = patient(case_id, size, num_slices)
        both = np.where(truth.label > 0, 3, truth.layout).astype(np.uint8)
        image = truth.image if case_id.startswith("coronacases") else to_gray(truth.image)
        for folder, array in zip(FOLDERS, (image, truth.layout, truth.label, both), strict=True):
            write_volume(as_stored(array, case_id), truth.spacing, source / folder / f"{case_id}.nii.gz", "LAS")
    return source


def patient(case_id: str, size: int = 64, num_slices: int = 24) -> PhantomCase:
    """What the case shows, as an LPS array."""
    return volumes.patient(CASES.index(case_id), size, num_slices)


def to_gray(hu: np.ndarray) -> np.ndarray:
    """Gray values 0 to 255 of the publisher's window."""
    return np.rint((np.clip(hu, -1250.0, 250.0) + 1250) * 255 / 1500).astype(np.uint8)


def as_stored(array: np.ndarray, case_id: str) -> np.ndarray:
    """The LPS array [z, y, x] of which the header will speak."""
    if case_id.startswith("coronacases"):
        return array
    return np.flip(array, (0, 1) if case_id == HEAD_FIRST else 1)


def zip_folders(source: Path) -> Path:
    """Put each folder into an archive of its name, flat as published, in place of the folder."""
    for folder in FOLDERS:
        with zipfile.ZipFile(source / f"{folder}.zip", "w") as archive:
            for file in sorted((source / folder).iterdir()):
                archive.write(file, file.name)
                file.unlink()
        (source / folder).rmdir()
    return source
