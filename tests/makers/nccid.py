"""A small NCCID bucket: patients with CT studies of several series, MR and x-ray, metadata twins, clinical files, and
masks that somebody drew. Everything that names a patient is planted in every place where it may stand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, MRImageStorage

from nnunet_synth.data.phantom import PhantomCase, PhantomSettings, draw_case
from tests.makers.dicom import CORONAL, CTSeries, uid

NO_SOFT_SERIES = "Covid1006"            # its only axial series lacks a slice
TWICE = "Covid1004"                     # in training/ and in validation/


@dataclass(frozen=True)
class Patient:
    """A patient, with a number of CT studies and the content of the clinical files by name (text is written as it is).

    `masked` names the series of each study that has a mask ("soft", "lung" or "" for none).
    """

    pseudonym: str
    masked: Sequence[str]
    clinical: Mapping[str, Any]

    @property
    def tags(self) -> dict[str, str]:
        number = int(self.pseudonym[-4:])
        return {"PatientName": f"Surname{number}^Given{number}", "PatientID": self.pseudonym,
                "PatientBirthDate": f"19{number % 90 + 10}1103", "PatientSex": "FM"[number % 2],
                "PatientAge": f"{number % 50 + 30:03d}Y", "OtherPatientIDs": f"NHS{number}7"}

    def study(self, index: int) -> str:
        return uid(self.pseudonym, "study", index)

    def series(self, index: int, name: str) -> str:
        return uid(f"{self.pseudonym}/{index}/{name}")

    def phantom(self, index: int, size: int = 64, num_slices: int = 24) -> PhantomCase:
        return _phantom(int(self.pseudonym[-4:]), index, size, num_slices)


@cache
def _phantom(number: int, index: int, size: int, num_slices: int) -> PhantomCase:
    seed = np.random.SeedSequence([11, number, index])
    return draw_case(seed, PhantomSettings(size, num_slices, slice_spacing=280 / num_slices))


def _clinical(pseudonym: str, **fields: Any) -> dict[str, Any]:
    return {"Pseudonym": pseudonym, "SubmittingCentre": "Trust A", "Ethnicity": "A", "Death": 0,
            "Date of Birth": "1951-11-03", "Hospital": "General Hospital", **fields}


# The scans are of 2020-04-12.
PATIENTS = (
    Patient("Covid1001", ["soft"], {
        "status_2020-06-30.json": _clinical("Covid1001", SwabStatus=0, SwabDate="01/02/2020"),
        "data_2020-04-20.json": _clinical("Covid1001", Age=11, Sex="1"),
        "data_2020-05-14.json": _clinical("Covid1001", Age=65.889, Sex="F",
                                          **{"Date of Positive Covid Swab": "04/02/2020"})}),
    Patient("Covid1002", ["soft"], {
        "status_2020-05-01.json": _clinical("Covid1002", SwabStatus="Negative", SwabDate="15/04/2020", Age=93, Sex=1)}),
    Patient("Covid1003", ["lung", "soft"], {
        "data_2020-05-14.json": dict.fromkeys(_clinical("Covid1003"), None) | {"Sex": None, "Age": None}}),
    Patient(TWICE, ["soft"], {"data_2020-05-14.json": '{"Pseudonym": "Covid1004", "Age": 5'}),
    Patient("Covid1005", [""], {}),
    Patient(NO_SOFT_SERIES, [""], {"data_2020-05-14.json": _clinical("Covid1001", Age=30, Sex="M")}),
    Patient("Covid1007", [""], {"status_2020-05-14.json": _clinical("Covid1007", SwabDate="not recorded", Age="none")}),
)
STUDIES = tuple((patient, index) for patient in PATIENTS for index in range(len(patient.masked)))
MASKED = tuple((patient, index) for patient, index in STUDIES if patient.masked[index])


def write_tree(root: Path, with_training_prefix: bool = True, size: int = 64, num_slices: int = 24) -> Path:
    """Write `root/nccid` and `root/masks`; returns the first.

    Args:
        with_training_prefix: `nccid/training/ct/…` and one study in `nccid/validation/`, too; else `nccid/ct/…`.
    """
    source = root / "nccid"
    bucket = source / "training" if with_training_prefix else source
    for patient, index in STUDIES:
        phantom = patient.phantom(index, size, num_slices)
        for name, series in _series(patient, index, phantom).items():
            skip = (num_slices // 2,) if patient.pseudonym == NO_SOFT_SERIES else ()
            _write(series, bucket, "ct", patient, index, name, skip)
        if patient.masked[index]:
            _write_mask(phantom, patient, index, root / "masks")
    _write_others(bucket)
    for patient in PATIENTS:
        for name, content in patient.clinical.items():
            file = bucket / "data" / patient.pseudonym / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    if with_training_prefix:
        shutil.copytree(bucket / "ct" / TWICE, source / "validation" / "ct" / TWICE)
    return source


def written_series(patient: Patient, index: int, name: str, size: int = 64, num_slices: int = 24) -> CTSeries:
    """The series that `write_tree` writes."""
    return _series(patient, index, patient.phantom(index, size, num_slices))[name]


def _series(patient: Patient, index: int, phantom: PhantomCase) -> dict[str, CTSeries]:
    """A soft one, one of another kernel, a scout and a coronal reformat; the soft one of Covid1005 has padding."""
    def series(name: str, hu: np.ndarray, **options: Any) -> CTSeries:
        return CTSeries(hu, spacing=options.pop("spacing", phantom.spacing), patient=patient.tags,
                        origin=(-180.5, -170.25, 40.0), series=f"{patient.pseudonym}/{index}/{name}",
                        edit=_plant(patient, index, options.pop("words", ["ORIGINAL", "PRIMARY", "AXIAL"])), **options)

    sharper = np.clip(phantom.image + (phantom.image > -500) * 10, -1024, 3071).astype(np.int16)
    z, y, x = phantom.spacing
    return {
        "soft": series("soft", phantom.image, kernel=("STANDARD", "B31f", "FC08")[index],
                       padding=-2000 if patient.pseudonym == "Covid1005" else None),
        "lung": series("lung", sharper, kernel=("LUNG", "B70f", "FC52")[index]),
        "scout": series("scout", phantom.image[:, :1].transpose(1, 0, 2), orientation=CORONAL, spacing=(y, z, x),
                        words=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "coronal": series("coronal", phantom.image[::-1, ::2].transpose(1, 0, 2), orientation=CORONAL,
                          spacing=(2 * y, z, x), words=["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]),
    }


def _plant(patient: Patient, index: int, words: list[str]):
    def edit(dataset: Dataset, slice_index: int) -> None:
        dataset.StudyInstanceUID = patient.study(index)
        dataset.ImageType = words
        dataset.SeriesDescription = f"THORAX {patient.tags['PatientName'].split('^')[0]}"
        dataset.ImageComments = patient.pseudonym
    return edit


def _write(series: CTSeries, bucket: Path, kind: str, patient: Patient, index: int, name: str,
           skip: Sequence[int] = ()) -> None:
    place = Path(patient.pseudonym) / patient.study(index) / series.uid
    twin = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": patient.tags["PatientName"]}]},
            "00100020": {"vr": "LO", "Value": [patient.pseudonym]}, "0020000E": {"vr": "UI", "Value": [series.uid]},
            "00080080": None, "00080090": {"vr": "PN", "Value": [None]}, "00281201": {"vr": "OW", "InlineBinary": None}}
    for file in series.write(bucket / kind / place, skip):
        metadata = bucket / f"{kind}-metadata" / place / f"{file.stem}.json"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(json.dumps(twin))


def _write_others(bucket: Path) -> None:
    """An MR and an x-ray of the first patient."""
    patient = PATIENTS[0]
    for kind, modality, storage in (("mri", "MR", MRImageStorage),
                                    ("xray", "DX", DigitalXRayImageStorageForPresentation)):
        def edit(dataset: Dataset, index: int, modality: str = modality, storage: str = storage) -> None:
            dataset.Modality = modality
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = storage

        series = CTSeries(patient.phantom(0).image[:1], series=f"{patient.pseudonym}/{kind}", patient=patient.tags,
                          edit=edit)
        _write(series, bucket, kind, patient, 9, kind)


def _write_mask(phantom: PhantomCase, patient: Patient, index: int, folder: Path) -> None:
    """On the grid of its series, in another axis order for each, with the patient's name in its header."""
    series = _series(patient, index, phantom)[patient.masked[index]]
    image = SimpleITK.GetImageFromArray(phantom.label)
    image.SetSpacing([float(step) for step in phantom.spacing[::-1]])
    image.SetOrigin(series.origin)
    order = ("LPS", "RAS", "LAS", "LPI")[MASKED.index((patient, index)) % 4]
    image = SimpleITK.DICOMOrient(image, order)
    image.SetMetaData("ITK_FileNotes", f"{patient.pseudonym} {patient.tags['PatientName']}")
    image.SetMetaData("aux_file", patient.pseudonym)
    image.SetMetaData("intent_name", patient.pseudonym)
    folder.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(folder / f"{series.uid}.nii.gz"), useCompression=True)


def planted(source: Path) -> set[str]:
    """Every text of the tree that must not reach the output: names of folders and files, and what the headers say."""
    texts = {"20200412", "2020-04-12", "04/02/2020", "2020-04-02", "15/04/2020", "2020-04-15", "1951-11-03"}
    for file in source.rglob("*.dcm"):
        texts |= {file.stem, *file.relative_to(source).parts[-4:-1]}
        header = pydicom.dcmread(file, stop_before_pixels=True)
        texts |= {header.SOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID, "ACC4711"}
        texts |= {str(part) for part in str(header.PatientName).split("^")} | {header.PatientID, header.OtherPatientIDs}
        texts |= {header.PatientBirthDate, header.get("SeriesDescription", ""), "General Hospital"}
    return {text for text in texts if text}
