"""NCCID: the UK's National COVID-19 Chest Imaging Database, CT studies of thousands of patients, without masks.

Where: on application, https://nhsx.github.io/covid-chest-imaging-database (documentation of the buckets and the
application; whether applications are still taken we could not check).
Licence: the NHS's Data Access Agreement and Data Access Framework Contract, signed by each organisation. They bind you:
what you convert stays as confidential as what you were given.
Cite: D. Cushnan et al., An overview of the National COVID-19 Chest Imaging Database: data quality and cohort analysis,
GigaScience 10(11):giab076, 2021, doi:10.1093/gigascience/giab076.
Size: stated in 2021 as 34,559 studies (x-ray, CT and MRI) of more than 10,000 patients, 1,663 GB.

SOURCE is the folder the bucket was copied to, with `training/` or `validation/` or both, or without this level (an
archive, or a folder of archives, is read too, but is much slower where it holds very many files):

    training/ct/PATIENT/STUDY_UID/SERIES_UID/IMAGE_UUID.dcm         read
    training/data/PATIENT/{data,status}_YYYY-MM-DD.json             read: the latest data_, else the latest status_
    training/ct-metadata/…/IMAGE_UUID.json                          not needed: the DICOM files say the same
    training/{mri,xray}{,-metadata}/…                               not read

One study makes one case, an unlabelled one, from one of its series: axial CT in at least --min-slices slices at regular
distances, the thinnest of these, of equals the one with a soft-tissue kernel. Scouts, coronal and sagittal reformats,
projections, tilted gantries, multi-frame files, mixed orientations and series with missing slices are rejected (the
last are interpolated with --allow-gaps); a scout that shares the UID of a scan is dropped. conversion_report.json has
every series that was not taken, with its reason.
HU are made from slope and intercept of each slice; what lies outside the reconstructed circle becomes -1024 HU.

NCCID has no masks. --masks FOLDER has yours, SERIES_UID.nii.gz (or .nii, .nrrd, .mha) with 0 background and 1
infection, on the grid of that series in any axis order; its study becomes a labelled case, and this series is taken.
Without masks a dataset cannot be planned: add the scans to the pool of another one with --add-to-pool ID.

Nothing that is written names a patient. Ids are keyed hashes, nccid_0123456789abcdef; the table that leads from them
back to patient and study lies beside SOURCE (SOURCE_ids.json, or --id-table FILE; --check makes it too, since its
report names the same ids). Keep it: with it, later conversions give the same ids. metadata.csv has covid_status, sex,
age (90 for all who are older), centre and the days from the swab to the scan, never a date; numbers of series and files
in the report follow the order of their names. The SHA-256 of a study can be computed by those who have the study.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, reject
from nnunet_synth.dataset_conversion.dicom_checks import MIN_SLICES
from nnunet_synth.dataset_conversion.dicom_series import Series, scan_files
from nnunet_synth.dataset_conversion.dicom_voxels import read_series
from nnunet_synth.dataset_conversion.hu_harmonisation import hu_doubts
from nnunet_synth.dataset_conversion.nccid_clinical import clean_age, clean_sex, read_clinical
from nnunet_synth.dataset_conversion.pseudonyms import IdTable, without_names
from nnunet_synth.dataset_conversion.series_choice import NotTaken, effective_thickness, rank_series, why_behind
from nnunet_synth.dataset_conversion.sources import SourceFile, list_files
from nnunet_synth.dataset_conversion.stray_images import without_strays
from nnunet_synth.dataset_conversion.volumes import read_volume, to_lps
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

    from nnunet_synth.dataset_conversion.writer import CaseReport

HELP = "NHS chest imaging database: DICOM studies for the pool, pseudonymous, labelled where you have masks"
EXAMPLE = "nnunet_synth convert nccid ~/nccid --add-to-pool 521 --jobs 8"

LABELS = {"background": 0, "infection": 1}
MASK_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
_MASK_TOLERANCE = 0.1           # voxels that a corner of a mask may lie beside that of its series: rounded headers
_NUM_FOLDS = 5


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        masks: folder or archive with masks named by series UID.
        min_slices: series with fewer are rejected.
        allow_gaps: interpolate missing slices and irregular spacing instead of rejecting the series.
        id_table: where the table of ids is kept; None = beside SOURCE.
    """

    masks: str | Path | None = field(default=None, repr=False)         # the report names no paths
    min_slices: int = MIN_SLICES
    allow_gaps: bool = False
    id_table: str | Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.min_slices < 1:
            raise UserError(f"--min-slices {self.min_slices}: a series has at least one slice")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masks", type=Path, metavar="FOLDER",
                        help="your masks, SERIES_UID.nii.gz; their studies become labelled cases")
    parser.add_argument("--min-slices", type=int, default=MIN_SLICES, metavar="N",
                        help="series with fewer slices are rejected (default: %(default)s)")
    parser.add_argument("--allow-gaps", action="store_true",
                        help="interpolate missing slices and irregular spacing instead of rejecting the series")
    parser.add_argument("--id-table", type=Path, metavar="FILE",
                        help="where the table from ids to patients is kept (default: SOURCE_ids.json beside SOURCE)")


def describe(options: Options) -> DatasetDescription:
    """What `dataset.json` says about it."""
    return DatasetDescription(
        name="NCCID",
        channel_names=("CT",),
        labels=LABELS,
        file_ending=".nii.gz",
        reader_writer="SimpleITKIO",
        num_dimensions=3,
        licence="NCCID Data Access Agreement and Data Access Framework Contract with the NHS; not to be passed on",
        citation="D. Cushnan et al., An overview of the National COVID-19 Chest Imaging Database: data quality and "
                 "cohort analysis, GigaScience 10(11):giab076, 2021, doi:10.1093/gigascience/giab076",
        source="https://nhsx.github.io/covid-chest-imaging-database",
        description="one axial CT series a study of the National COVID-19 Chest Imaging Database",
        notes=("ids are keyed hashes; the table that leads back to the patients is kept beside the source: keep it, "
               "and keep it to yourself",))


def find_cases(source: str | Path, options: Options) -> Iterator[Case]:
    """Yield a case for each CT study, in the order of their ids; writes the table of ids.

    The names of all files are gone through once; what is held is the studies and the patients' clinical files, never
    the DICOM files, of which there are millions.

    Raises:
        UserError: `source` has no CT study in NCCID's tree, or the table of ids cannot be read or written.
    """
    source = Path(source)
    masks = _find_masks(options.masks)
    found = _survey(source, masks)
    if not found.studies:
        raise UserError(f"{source} holds no ct/PATIENT/STUDY_UID/SERIES_UID/*.dcm: give the folder that NCCID's bucket "
                        "was copied to (for other DICOM: nnunet_synth convert folder)")
    table = IdTable(_table_file(source, options))
    cases = [_case(uid, place, source, found, masks, table, options) for uid, place in found.studies.items()]
    seen = {uid for place in found.studies.values() for uid in place.masked}
    for uid in masks.keys() - seen:
        case_id = table.id_of("nccid", f"mask/{uid}")
        table.remember(case_id, series_uid=uid)
        cases.append(Case(case_id, "labelled", (), partial(reject, "a mask whose series is not in the source (see the "
                                                                   "table of ids): name masks by series UID")))
    table.save()
    yield from sorted(cases, key=lambda case: case.id)


def make_splits(cases: Sequence[CaseReport], options: Options) -> list[dict[str, Any]]:
    """Five folds that never part a patient's studies, if any patient has several; else nnU-Net's own."""
    labelled = [case for case in cases if case.role == "labelled"]
    patients = [case.group for case in labelled]
    if len(set(patients)) in (len(patients), 1):
        return []
    from sklearn.model_selection import GroupKFold
    ids = np.array([case.id for case in labelled])
    folds = GroupKFold(min(_NUM_FOLDS, len(set(patients)))).split(ids, groups=patients)
    return [{"train": sorted(ids[train].tolist()), "val": sorted(ids[val].tolist())} for train, val in folds]


# ----------------------------------------------------------------------------------------------------------------------
# What lies there


@dataclass
class _Place:
    """Where a study lies: it may be in training/ and in validation/."""

    patients: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    masked: set[str] = field(default_factory=set)           # those of its series that have a mask


@dataclass
class _Found:
    studies: dict[str, _Place] = field(default_factory=dict)                # by UID
    clinical: dict[str, list[SourceFile]] = field(default_factory=dict)     # by patient


def _survey(source: Path, masks: Mapping[str, SourceFile]) -> _Found:
    found = _Found()
    for file in list_files(source):
        parts, ending = file.path.parts, file.path.suffix.lower()
        if ending == ".dcm" and len(parts) >= 5 and parts[-5] == "ct":
            place = found.studies.setdefault(parts[-3], _Place())
            place.patients.add(parts[-4])
            place.folders.add(str(file.path.parents[1]))
            if parts[-2] in masks:
                place.masked.add(parts[-2])
        elif ending == ".json" and len(parts) >= 3 and parts[-3] == "data":
            found.clinical.setdefault(parts[-2], []).append(file)
    return found


def _find_masks(folder: str | Path | None) -> dict[str, SourceFile]:
    """Masks by the series UID that they are named by."""
    if folder is None:
        return {}
    masks: dict[str, SourceFile] = {}
    for file in list_files(folder):
        name = file.path.name
        uid = next((name[:-len(ending)] for ending in MASK_ENDINGS if name.lower().endswith(ending)), "")
        if uid and masks.setdefault(uid, file) is not file:
            raise UserError(f"{masks[uid]} and {file} are masks of one series: remove one")
    if not masks:
        raise UserError(f"{folder} holds no masks: name them SERIES_UID.nii.gz (or {', '.join(MASK_ENDINGS[1:])})")
    return masks


def _table_file(source: Path, options: Options) -> Path:
    source = source.resolve()
    if options.id_table is None:
        return source.parent / f"{source.stem if source.is_file() else source.name}_ids.json"
    file = Path(options.id_table).resolve()
    if file.is_relative_to(source):
        raise UserError(f"--id-table {file} lies in the source, where nothing is written: choose another place")
    return file


def _case(uid: str, place: _Place, source: Path, found: _Found, masks: Mapping[str, SourceFile], table: IdTable,
          options: Options) -> Case:
    case_id = table.id_of("nccid", uid)
    patient = min(place.patients)
    table.remember(case_id, patient=" ".join(sorted(place.patients)), study_uid=uid)
    study = Study(case_id, source.resolve(), uid, patient, tuple(sorted(place.folders)),
                  {series: masks[series] for series in sorted(place.masked)}, tuple(found.clinical.get(patient, ())))
    if len(place.patients) > 1:
        read = partial(reject, f"its study lies under {len(place.patients)} patients (see the table of ids)")
    else:
        read = partial(read_study, study, options.min_slices, options.allow_gaps)
    return Case(case_id, "labelled" if place.masked else "unlabelled", (study,), read,
                group=table.id_of("patient", patient))


@dataclass(frozen=True, slots=True)
class _NamelessFile(SourceFile):
    """A file that messages call by something else than its path."""

    called: str = ""

    def __str__(self) -> str:
        return self.called


@dataclass(frozen=True)
class Study:
    """A CT study with all that belongs to it, as one source that is known by its pseudonym alone.

    Attributes:
        id: its pseudonym.
        source: the download.
        uid, patient: what nobody must learn.
        folders: where its series lie in the download.
        masks: by series UID.
        clinical: the patient's JSON files.
    """

    id: str
    source: Path
    uid: str
    patient: str
    folders: tuple[str, ...]
    masks: Mapping[str, SourceFile]
    clinical: tuple[SourceFile, ...]

    def __str__(self) -> str:
        return self.id

    def files(self) -> Iterator[SourceFile]:
        """Its DICOM files, called by their number in the order of names."""
        number = 0
        for folder in self.folders:
            for file in list_files(self.source, under=folder):
                if file.path.suffix.lower() == ".dcm":
                    number += 1
                    yield _NamelessFile(file.root, file.name, file.prefix, f"file {number} of the study")

    def mask(self, series_uid: str) -> SourceFile:
        file = self.masks[series_uid]
        return _NamelessFile(file.root, file.name, file.prefix, "its mask")

    def sha256(self) -> str:
        """Of the sorted digests of all its files: names do not matter."""
        with self.nameless():
            return hashlib.sha256("\n".join(sorted(file.sha256() for file in self._everything())).encode()).hexdigest()

    def stamp(self) -> str:
        with self.nameless():
            return hashlib.sha256("\n".join(file.stamp() for file in self._everything()).encode()).hexdigest()

    def _everything(self) -> Iterator[SourceFile]:
        yield from self.files()
        yield from self.masks.values()
        yield from self.clinical

    @contextmanager
    def nameless(self) -> Iterator[None]:
        """What goes wrong in here is told without names, UIDs and paths."""
        try:
            yield
        except UserError as error:
            roots = (str(self.source), *(str(file.root) for file in self.masks.values()), tempfile.gettempdir())
            told = without_names(str(error), roots, (self.patient, self.uid, *self.masks))
            raise UserError(told) from None         # the chain of errors has the names, too


# ----------------------------------------------------------------------------------------------------------------------
# One case


def read_study(study: Study, min_slices: int, allow_gaps: bool) -> CaseContent:
    """One series of a study, and its mask. Raises UserError with the reason why there is none."""
    import SimpleITK
    with study.nameless():
        found, passed_over = scan_files(study.files())
        series = [without_strays(one, min_slices, allow_gaps) for one in found]
        numbers = {id(one): number for number, one in enumerate(series, start=1)}
        usable, left = rank_series(series, min_slices, allow_gaps)
        if study.masks:
            left += [NotTaken(one, "usable, but it has no mask") for one in usable if one.uid not in study.masks]
            usable = [one for one in usable if one.uid in study.masks]
        taken = None
        for one in usable:
            if taken is not None:
                left.append(NotTaken(one, why_behind(one, taken)))
                continue
            try:
                image, repairs = read_series(one)
                taken = one
            except UserError as error:
                left.append(NotTaken(one, str(error)))
        if taken is None:
            raise UserError(_nothing_to_take(study, left, numbers))
        label = _read_mask(study.mask(taken.uid), image) if study.masks else None
        not_used = [asdict(one) for one in (*taken.dropped, *passed_over)]
        metadata = {**_patient_metadata(study, taken), **_series_metadata(taken, left, numbers),
                    **({"files_not_used": not_used} if not_used else {})}
        values = SimpleITK.GetArrayViewFromImage(image)
        return CaseContent((image,), label, repairs=(*repairs, *hu_doubts(float(values.min()), float(values.max()))),
                           metadata=metadata)


def _nothing_to_take(study: Study, left: Sequence[NotTaken], numbers: Mapping[int, int]) -> str:
    if not left:
        return "none of its files is there any more"
    of_interest = [one for one in left if one.series.uid in study.masks] or left
    if study.masks and not any(one.series.uid in study.masks for one in left):
        return "its mask has the name of a folder, but no series there has this UID"
    reasons = "; ".join(f"series {numbers[id(one.series)]}: {one.reason}" for one in of_interest[:5])
    more = f"; and {len(of_interest) - 5} more" if len(of_interest) > 5 else ""
    return f"no usable axial CT series{' with a mask' if study.masks else ''} ({reasons}{more})"


def _series_metadata(taken: Series, left: Sequence[NotTaken], numbers: Mapping[int, int]) -> dict[str, Any]:
    return {
        "series": f"{numbers[id(taken)]} of {len(numbers)}",
        "kernel": taken.header.kernel,
        "slice_thickness": round(effective_thickness(taken), 3),
        "rejected_series": [{"series": numbers[id(one.series)], "slices": len(one.series.slices),
                             "kernel": one.series.header.kernel if one.series.slices else "", "reason": one.reason}
                            for one in sorted(left, key=lambda one: numbers[id(one.series)])],
    }


def _patient_metadata(study: Study, taken: Series) -> dict[str, Any]:
    """Of the clinical file, with sex and age from the DICOM header where it has none."""
    clinical = read_clinical(study.clinical, study.patient)
    tags = _read_tags(taken.slices[0].file, "StudyDate", "PatientSex", "PatientAge")
    fallback = {"sex": clean_sex(tags["PatientSex"]), "age": clean_age(tags["PatientAge"])}
    return {**{name: value for name, value in fallback.items() if value is not None}, **clinical.fields,
            **clinical.days_from_swab(_dicom_date(tags["StudyDate"])),
            **({"clinical_note": clinical.note} if clinical.note else {})}


def _read_tags(file: SourceFile, *keywords: str) -> dict[str, str]:
    import pydicom
    with file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(keywords), force=True)
        return {keyword: str(dataset.get(keyword) or "") for keyword in keywords}


def _dicom_date(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None


def _read_mask(file: SourceFile, image: SimpleITK.Image) -> SimpleITK.Image:
    """A mask as an LPS array on the grid of `image`, without the notes that its header may hold."""
    import SimpleITK
    mask = to_lps(read_volume(file))
    if mask.GetSize() != image.GetSize():
        raise UserError(f"its mask has {mask.GetSize()} voxels, the series {image.GetSize()}: draw it on this series")
    corners = list(product(*((0, length - 1) for length in image.GetSize())))
    apart = max(np.abs(np.subtract(image.TransformPhysicalPointToContinuousIndex(
        mask.TransformIndexToPhysicalPoint(corner)), corner)).max() for corner in corners)
    if apart > _MASK_TOLERANCE:
        raise UserError(f"its mask does not lie where the series does: up to {apart:.1f} voxels beside it")
    on_grid = SimpleITK.GetImageFromArray(SimpleITK.GetArrayViewFromImage(mask))
    on_grid.CopyInformation(image)
    return on_grid
