"""Your own scans: a folder of volumes (NIfTI, NRRD, MetaImage) or of DICOM series, with or without label maps.

    nnunet_synth convert folder SOURCE --labels LABELS --unlabelled MORE_SCANS -d ID

    SOURCE/ANN.nii.gz           one volume a case: .nii.gz .nii .nrrd .mha, or .mhd with its .raw or .zraw; sub-folders
                                are searched too. ANN_0000.nii.gz is ANN where every volume has this suffix
    SOURCE/BOB/….dcm            or one DICOM series a case, whatever its files are called
    LABELS/ANN.nii.gz           the label map of a scan has its name, in any of these formats; of a DICOM series, that
                                of its folder (if no other series lies in a folder of this name) or its UID
    MORE_SCANS/…                as SOURCE; nothing of it is labelled

Of the two files that dcm2niix writes of a scan with gaps or a tilted gantry (ANN.nii.gz and ANN_Eq_1.nii.gz or
ANN_Tilt_1.nii.gz) one is taken: the one with a label map, else the corrected one.

SOURCE, LABELS and MORE_SCANS may be zip or tar archives (without gzip), and LABELS and MORE_SCANS may lie in SOURCE.
Scans of SOURCE without a label map join the unlabelled ones. Licence and citation are your business; dataset.json says
"user's own data".

Each image becomes an LPS array (x to the patient's left, y to posterior, z to superior); the values of the voxels and
their places in the patient do not change. A label map lies on the grid of its image, in any axis order. It holds
background=0 and infection=1 unless --label-names says otherwise. --label-values 255=1 takes 255 for 1, values that miss
an integer by 0.001 or less are rounded (both stand in the report), and a map with any other value is rejected.

The channel CT promises Hounsfield units. Nothing is rescaled: a volume in stored values (1024 too high) is rejected,
one whose values do not look like HU for another reason is written as it is, and the report says so. DICOM series must
be CT: slope and intercept are applied, and localisers, reformats, series with missing slices (unless --allow-gaps) or
fewer than --min-slices are rejected with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_synth.data.hounsfield import not_hounsfield
from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, PassedOver
from nnunet_synth.dataset_conversion.dcm2niix_twins import find_twins, one_of
from nnunet_synth.dataset_conversion.dicom_checks import MIN_SLICES, check_series
from nnunet_synth.dataset_conversion.dicom_series import Series, scan_files
from nnunet_synth.dataset_conversion.dicom_voxels import read_series
from nnunet_synth.dataset_conversion.hu_harmonisation import hu_doubts
from nnunet_synth.dataset_conversion.label_values import as_labels
from nnunet_synth.dataset_conversion.sources import Source, SourceFile, list_files
from nnunet_synth.dataset_conversion.stray_images import without_strays
from nnunet_synth.dataset_conversion.volumes import compact, read_volume, to_lps, turned
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

    from nnunet_synth.dataset_conversion.writer import CaseReport

HELP = "your own volumes (NIfTI, NRRD, MetaImage) or DICOM series, with or without label maps"
EXAMPLE = ("nnunet_synth convert folder ~/scans --labels ~/masks --unlabelled ~/more_scans "
           "--label-names background=0 infection=1 -d 510 --name MyLungs")

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
DATA_OF_MHD = (".raw", ".zraw")
LABELS = {"background": 0, "infection": 1}
CT = "CT"


@dataclass(frozen=True)
class Options:
    """What the user says about the folder.

    Attributes:
        labels: folder or archive of the label maps.
        unlabelled: folder or archive of more scans.
        label_names: name → value, or pairs of them; values 0, 1, 2, … with `background` = 0.
        channel: nnU-Net's channel name; `CT` = Hounsfield units, another is standardised per image.
        min_slices: DICOM series with fewer are rejected.
        allow_gaps: interpolate missing DICOM slices instead of rejecting the series.
        label_values: value in the label maps → value in `label_names`, or pairs of them; other values stay.
    """

    labels: Path | None = None
    unlabelled: Path | None = None
    label_names: Mapping[str, int] = field(default_factory=lambda: dict(LABELS))
    channel: str = CT
    min_slices: int = MIN_SLICES
    allow_gaps: bool = False
    label_values: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = dict(self.label_names)
        object.__setattr__(self, "label_names", names)
        if names.get("background") != 0 or sorted(names.values()) != list(range(len(names))) or len(names) < 2:
            raise UserError(f"label names {_named(names)}: nnU-Net needs background=0 and 1, 2, 3, … without a gap "
                            "(--label-values 255=1 takes 255 for 1)")
        object.__setattr__(self, "label_values", _checked_values(self.label_values, names))
        if not self.channel:
            raise UserError("the channel needs a name: CT for Hounsfield units")
        if self.min_slices < 1:
            raise UserError(f"--min-slices {self.min_slices}: a series has at least one slice")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=Path, metavar="FOLDER", help="label maps, each named as its scan")
    parser.add_argument("--unlabelled", type=Path, metavar="FOLDER", help="more scans, none of them labelled")
    parser.add_argument("--label-names", type=_pair, nargs="+", metavar="NAME=VALUE", default=dict(LABELS),
                        help="what the values of the label maps mean (default: background=0 infection=1)")
    parser.add_argument("--label-values", type=_value_pair, nargs="+", action="extend", metavar="OLD=NEW", default=[],
                        help="values of the label maps to be taken for others, as 255=1 for masks of 0 and 255")
    parser.add_argument("--channel", default=CT, metavar="NAME",
                        help="CT (Hounsfield units, the default), or the name of another kind of image")
    parser.add_argument("--min-slices", type=int, default=Options.min_slices, metavar="N",
                        help="DICOM series with fewer slices are rejected (default: %(default)s)")
    parser.add_argument("--allow-gaps", action="store_true",
                        help="interpolate missing DICOM slices instead of rejecting the series")


def describe(options: Options) -> DatasetDescription:
    """What `dataset.json` says about it."""
    own = "user's own data"
    notes = () if options.channel != CT else (
        "the channel CT promises Hounsfield units: look at the cases whose values do not look like them",)
    return DatasetDescription(
        name="Own", channel_names=(options.channel,), labels=options.label_names, file_ending=".nii.gz",
        reader_writer="SimpleITKIO", num_dimensions=3, licence=own, citation=own, source=own,
        description="converted from a folder of the user's own", notes=notes)


def find_cases(source: str | Path, options: Options) -> Iterator[Case | PassedOver]:
    """Yield the scans of SOURCE, then those that nobody labelled, then the files that belong to none.

    Ids are the scans' names, made safe for nnU-Net. Reads the headers of DICOM files, and only those volumes that may
    be two of one scan (`dcm2niix_twins.py`).

    Args:
        source: folder or archive of volumes or of DICOM series.

    Raises:
        UserError: no scans; two scans or two label maps of one name; a label map that belongs to no scan.
    """
    labels, passed_over = _label_maps(options.labels)
    scans, others = _find_scans(source, options)
    passed_over += others
    known = {name for scan in scans for name in scan.names}
    strays = [files[0] for name, files in labels.items() if name not in known]
    if strays:
        raise UserError(f"{len(strays)} label map(s) belong to no scan of {source}, e.g. {strays[0]}: give a label map "
                        "the name of its scan")
    label_of = {scan.id: _label_of(scan, labels) for scan in scans}
    if options.unlabelled:
        more, others = _find_scans(options.unlabelled, options)
        scans, passed_over = scans + more, passed_over + others
    scans, twins = _without_twins(scans, label_of)
    for scan in scans:
        yield _case(scan, label_of.get(scan.id, ()), options)
    yield from passed_over + twins


def make_splits(cases: Sequence[CaseReport], options: Options) -> list[dict[str, Any]]:
    """None of our own: nnU-Net draws its five folds."""
    return []


# ----------------------------------------------------------------------------------------------------------------------
# What lies there


@dataclass(frozen=True)
class SeriesFiles:
    """The files of a DICOM series as one source: hundreds of digests a case would help nobody."""

    files: tuple[SourceFile, ...]

    def __str__(self) -> str:
        return f"{self.files[0]} and {len(self.files) - 1} more"

    def sha256(self) -> str:
        """Of the digests of the files, in the order of their paths."""
        return hashlib.sha256("\n".join(file.sha256() for file in self.files).encode()).hexdigest()

    def stamp(self) -> str:
        return hashlib.sha256("\n".join(file.stamp() for file in self.files).encode()).hexdigest()


class ScanContent(NamedTuple):
    """An LPS image, what was changed on the way to it, and what joins the metadata of its case."""

    image: SimpleITK.Image
    repairs: tuple[str, ...]
    metadata: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Scan:
    """A volume that was found.

    Attributes:
        id: safe name, unique in its folder.
        names: those its label map may have.
    """

    id: str
    names: tuple[str, ...]
    sources: tuple[Source, ...]
    read: Callable[[], ScanContent]


def _find_scans(source: str | Path, options: Options) -> tuple[list[Scan], list[PassedOver]]:
    """The scans of a folder, and its files that belong to none."""
    others = [Path(folder).resolve() for folder in (options.labels, options.unlabelled)
              if folder is not None and Path(folder).resolve() != Path(source).resolve()]
    files = [file for file in list_files(source)
             if not any((file.root / file.name).is_relative_to(folder) for folder in others)]
    volumes = _volumes(files)
    series, passed_over = scan_files(file for file in files
                                     if not _stem(file) and file.path.suffix.lower() not in DATA_OF_MHD)
    if volumes and series:
        raise UserError(f"{source} holds {len(volumes)} volumes and {len(series)} DICOM series: give a folder that "
                        "holds one kind")
    if not volumes and not series:
        raise UserError(f"{source} holds no volumes ({', '.join(ENDINGS)}) and no DICOM series{_about_pairs(files)}"
                        + (f"; {passed_over[0].file} is {passed_over[0].reason}" if passed_over else ""))
    if series:
        return _series_scans(series, options), passed_over + [
            PassedOver(str(file), "no DICOM file") for file in files if file.path.suffix.lower() in DATA_OF_MHD]
    return [Scan(name, (name,), parts, partial(_read_file, parts[0])) for name, parts in volumes.items()], \
        _of_no_volume(files, volumes)


def _of_no_volume(files: Sequence[SourceFile], volumes: Mapping[str, tuple[SourceFile, ...]]) -> list[PassedOver]:
    used = {file for parts in volumes.values() for file in parts}
    return [PassedOver(str(file), "no volume") for file in files if file not in used]


def _without_twins(scans: Sequence[Scan], labels: Mapping[str, tuple[SourceFile, ...]],
                   ) -> tuple[list[Scan], list[PassedOver]]:
    """One scan of each that dcm2niix wrote twice, and the files of the others."""
    volumes = {scan.id: scan.sources[0] for scan in scans
               if scan.sources and isinstance(scan.sources[0], SourceFile)}
    left, passed_over = list(scans), []
    for names in find_twins(volumes):
        taken = one_of(names, [name for name in names if labels.get(name)])
        for name in names:
            if name != taken:
                passed_over += [PassedOver(str(file), f"dcm2niix wrote this scan twice: {taken} is taken")
                                for file in (volumes[name], *labels.get(name, ()))]
        left = [_doubted(scan) if scan.id == taken == names[-1] else scan for scan in left
                if scan.id == taken or scan.id not in names]
    return left, passed_over


def _doubted(scan: Scan) -> Scan:
    """The uncorrected twin, taken because it has the label map."""
    return replace(scan, read=partial(scan.read, doubts=(
        "NOT repaired: slices at uneven distances or a tilted gantry, which dcm2niix corrected in another file",)))


def _series_scans(series: Sequence[Series], options: Options) -> list[Scan]:
    """Named by the folder where that tells them apart, else by UID."""
    folders = [safe_id(one.slices[0].file.path.parent.name) if one.slices else "" for one in series]
    scans = []
    for one, folder in zip(series, folders, strict=True):
        uid = one.uid or f"unreadable_{hashlib.sha256(one.defect.encode()).hexdigest()[:8]}"
        names = (folder, uid) if folder and folders.count(folder) == 1 else (uid,)
        sources = (SeriesFiles(tuple(part.file for part in one.slices)),) if one.slices else ()
        scans.append(Scan(names[0], names, sources, partial(_read_series, one, options.min_slices, options.allow_gaps)))
    return scans


def _label_maps(folder: Path | None) -> tuple[dict[str, tuple[SourceFile, ...]], list[PassedOver]]:
    """Name → label map, and the files that are none."""
    if folder is None:
        return {}, []
    files = list(list_files(folder))
    labels = _volumes(files)
    if not labels:
        raise UserError(f"{folder} holds no label maps ({', '.join(ENDINGS)}){_about_pairs(files)}")
    return labels, _of_no_volume(files, labels)


def _about_pairs(files: Sequence[SourceFile]) -> str:
    pairs = [file for file in files if file.path.suffix.lower() == ".hdr"]
    return f"; pairs of .hdr and .img, such as {pairs[0]}, must be converted to .nii.gz first" if pairs else ""


def _label_of(scan: Scan, labels: Mapping[str, tuple[SourceFile, ...]]) -> tuple[SourceFile, ...]:
    found = [labels[name] for name in scan.names if name in labels]
    if len(found) > 1:
        raise UserError(f"{found[0][0]} and {found[1][0]} would both be the label map of {scan.id}: remove one")
    return found[0] if found else ()


def _volumes(files: Sequence[SourceFile]) -> dict[str, tuple[SourceFile, ...]]:
    """Safe name → volume, with the file of its voxels if it is a header alone.

    nnU-Net's channel suffix is dropped where every volume has it; elsewhere it is a number like any other.
    """
    volumes = [(file, _stem(file)) for file in files if _stem(file)]
    if all(stem.endswith("_0000") for _, stem in volumes):
        volumes = [(file, stem.removesuffix("_0000")) for file, stem in volumes]
    voxels = {str(file): file for file in files if file.path.suffix.lower() in DATA_OF_MHD}
    named: dict[str, tuple[SourceFile, ...]] = {}
    for file, stem in volumes:
        name = safe_id(stem)
        if name in named:
            raise UserError(f"{named[name][0]} and {file} would both be case {name}: rename one")
        named[name] = (file, *_voxels_of(file, voxels))
    return named


def _voxels_of(file: SourceFile, voxels: Mapping[str, SourceFile]) -> list[SourceFile]:
    if file.path.suffix.lower() != ".mhd":
        return []
    if file.is_in_archive:
        raise UserError(f"{file} has its voxels in another file: extract this archive and give the folder")
    stem = str(file)[:-len(".mhd")]
    return [voxels[stem + ending] for ending in DATA_OF_MHD if stem + ending in voxels]


def _stem(file: SourceFile) -> str:
    """The name without the ending of a volume; empty for other files."""
    name = file.path.name
    return next((name[:-len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), "")


def safe_id(name: str) -> str:
    """A case id that every part of nnU-Net can handle: `scan 1 (Köln)_seg` → `scan_1_K_ln-seg`.

    nnU-Net takes `CASE_seg.b2nd` for the segmentation of CASE.
    """
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")
    return re.sub(r"_seg$", "-seg", name)


# ----------------------------------------------------------------------------------------------------------------------
# One case


def _case(scan: Scan, label: tuple[SourceFile, ...], options: Options) -> Case:
    return Case(id=scan.id, role="labelled" if label else "unlabelled", sources=(*scan.sources, *label),
                read=partial(read_case, scan.read, label[0] if label else None, options))


def read_case(read: Callable[[], ScanContent], label_file: SourceFile | None, options: Options) -> CaseContent:
    """One scan and its label map as LPS arrays. Raises UserError with the reason why it cannot be used."""
    import SimpleITK
    image, repairs, metadata = read()
    values = SimpleITK.GetArrayViewFromImage(image)
    lowest, highest = float(values.min()), float(values.max())
    if options.channel == CT and (reason := not_hounsfield(values)):
        raise UserError(f"the image {reason}, or give the images another name than CT with --channel")
    doubts = hu_doubts(lowest, highest) if options.channel == CT else ()
    label, of_label = (None, ()) if label_file is None else _read_label(label_file, options)
    return CaseContent((image,), label,
                       repairs=(*repairs, *(f"label map: {one}" for one in of_label if one not in repairs), *doubts),
                       metadata={"lowest_value": lowest, "highest_value": highest, **metadata})


def _read_file(file: SourceFile, doubts: tuple[str, ...] = ()) -> ScanContent:
    stored = read_volume(file)
    return ScanContent(compact(to_lps(stored)), (*turned(stored), *doubts))


def _read_series(series: Series, min_slices: int, allow_gaps: bool) -> ScanContent:
    series = without_strays(series, min_slices, allow_gaps)
    reason = check_series(series, min_slices, allow_gaps)
    if reason:
        raise UserError(reason)
    not_used = [asdict(one) for one in series.dropped]
    return ScanContent(*read_series(series), {"files_not_used": not_used} if not_used else {})


def _read_label(file: SourceFile, options: Options) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    stored = read_volume(file)
    label, repairs = as_labels(stored, str(file), options.label_names, options.label_values)
    return to_lps(label), (*turned(stored), *repairs)


def _pair(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, as in infection=1")
    return name, int(value)


def _value_pair(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(-?\d{1,9})=(\d{1,9})", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, as in 255=1")
    return int(match[1]), int(match[2])


def _checked_values(pairs: Mapping[int, int] | Sequence[tuple[int, int]], names: Mapping[str, int]) -> dict[int, int]:
    pairs = list(pairs.items() if isinstance(pairs, Mapping) else pairs)
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UserError("--label-values gives a value twice")
    for old, new in values.items():
        if new not in names.values():
            raise UserError(f"--label-values {old}={new}: {new} is none of the labels {_named(names)}")
    return values


def _named(names: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in names.items())
