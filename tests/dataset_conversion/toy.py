"""Cases of a few voxels, whose sources are text files; `reads.log` beside them tells which were read."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription
from nnunet_synth.dataset_conversion.sources import SourceFile

HIDDEN = ".Dataset007_Toy.converting"
DESCRIPTION = DatasetDescription(
    name="Toy", channel_names=("CT",), labels={"background": 0, "lesion": 1}, file_ending=".nii.gz",
    reader_writer="SimpleITKIO", num_dimensions=3, licence="CC0", citation="A. Author, Toys, 2020",
    source="https://example.org/toys", layout_labels={"left_lung": 1, "right_lung": 2}, notes=("a toy",))
RNG = np.random.default_rng(0)
HU = RNG.integers(-1000, 1000, (3, 8, 9)).astype(np.int16)
LABEL = (HU > 500).astype(np.uint8)
LAYOUT = RNG.integers(0, 3, HU.shape).astype(np.uint8)


def volume(array, spacing=(0.7, 0.8, 5.0), origin=(1.0, 2.0, 3.0), direction=(1, 0, 0, 0, -1, 0, 0, 0, -1)):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def hu(case_id: str) -> np.ndarray:
    """The voxels of a case: no two have the same, as no two patients do."""
    image = HU.copy()
    image[0, 0, :4] = np.frombuffer(hashlib.sha256(case_id.encode()).digest()[:4], np.uint8)
    return image


def content(source: Path, image=None, label=None, layout=None, repairs=(), metadata=None, **geometry):
    """Arrays, so that it can be sent to a worker process. Reading a source that holds `wait` takes a minute."""
    with open(source.parent / "reads.log", "a") as log:
        log.write(f"{source.stem}\n")
    if source.read_text() == "wait":
        time.sleep(60)
    to_image = partial(volume, **geometry)
    return CaseContent((to_image(hu(source.stem) if image is None else image),),
                       None if label is None else volume(label), None if layout is None else volume(layout), repairs,
                       metadata or {})


def case(tmp_path: Path, case_id: str, role="labelled", **options) -> Case:
    source = tmp_path / f"{case_id}.source"
    if not source.exists():
        source.write_text(case_id)
    if role == "labelled":
        options = {"label": LABEL, **options}
    return Case(case_id, role, (SourceFile(tmp_path, source.name),), partial(content, source, **options),
                group="patient", metadata={"age": 5})


def take_reads(tmp_path: Path) -> list[str]:
    """Which cases were read since the last call."""
    log = tmp_path / "reads.log"
    read = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return read
