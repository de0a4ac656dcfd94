"""The one writer of nnU-Net raw datasets: every converter hands it cases, it checks, writes and reports them.

    nnUNet_raw/DatasetXXX_Name/
      imagesTr labelsTr imagesUl imagesTs labelsTs layoutsTr layoutsUl layoutsTs    (those that have cases)
      dataset.json
      conversion_report.json     every case: written, repaired (how) or rejected (why), SHA-256 of its source files
      metadata.csv               what the source knows of each case, if it knows anything
    nnUNet_preprocessed/DatasetXXX_Name/splits_final.json       where the source has folds of its own

The dataset appears complete or not at all. A conversion that was stopped goes on where it was (`unfinished.py`).
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth import __version__
from nnunet_synth.atomic import refusal, remove_folder, write_json
from nnunet_synth.data.raw_images import check_file, check_raw_image
from nnunet_synth.data.splits import PARTS, check_split, load_splits, splits_file
from nnunet_synth.data.voxel_size import check_voxel_size
from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, PassedOver, parted
from nnunet_synth.dataset_conversion.report import SUFFIX, CaseReport, ConversionReport, write_metadata
from nnunet_synth.dataset_conversion.sources import Source, scratch_folder
from nnunet_synth.dataset_conversion.unfinished import Unfinished, hidden_folder
from nnunet_synth.dataset_conversion.volumes import value_counts
from nnunet_synth.errors import UserError
from nnunet_synth.lock import only_writer
from nnunet_synth.parallel import parallel_map
from nnunet_synth.progress import progress

if TYPE_CHECKING:
    import SimpleITK

_NIFTI_HEADER = 352             # bytes before the voxels, as ITK writes them
_GEOMETRY_TOLERANCE = 1e-3      # mm, and for direction cosines: headers are often rounded

MakeSplits = Callable[[Sequence[CaseReport]], list[dict[str, Any]]]


def write_dataset(found: Iterable[Case | PassedOver], description: DatasetDescription, target: Path, *,
                  num_jobs: int = 1, check_only: bool = False, allow_rejected: bool = False,
                  options: Mapping[str, Any] | None = None,
                  make_splits: MakeSplits | None = None, preprocessed: Path | None = None) -> ConversionReport:
    """Write a whole nnU-Net raw dataset, or nothing.

    Args:
        found: all cases of the source, not read yet, and its files that belong to none.
        target: …/nnUNet_raw/DatasetXXX_Name; must not exist.
        num_jobs: worker processes; each holds one case in memory.
        check_only: read and check everything, write nothing.
        allow_rejected: write the dataset without the rejected cases. Rejected unlabelled cases are always left out.
        options: of the conversion, for the report; finished cases of an earlier run with other options are not kept.
        make_splits: what was written → folds for splits_final.json, or [].
        preprocessed: …/nnUNet_preprocessed/DatasetXXX_Name, where the folds go.

    Raises:
        UserError: two cases have the same id; a labelled or test case was rejected; there is no labelled case; the
            target exists or is being written; folds that do not fit the cases, or others in their place.
    """
    cases, passed_over = parted(found)
    check_ids(cases)
    if check_only:
        report = replace(check_cases(cases, description, target.name, num_jobs), passed_over=tuple(passed_over))
        if make_splits is not None:
            make_splits(report.usable)          # says which cases of its folds are not there
        return report
    if not any(case.role == "labelled" for case in cases):
        raise UserError("no labelled case was found, and nnU-Net cannot plan such a dataset: give the labels, or add "
                        "the scans to an existing dataset with --add-to-pool")
    options = options or {}
    with only_writer(target):
        if target.exists():
            raise UserError(f"{target} exists; choose another -d or remove it")
        unfinished = Unfinished.of(hidden_folder(target), description, options)
        with unfinished.kept_if_stopped():
            report = ConversionReport(target.name, target, convert_cases(cases, description, unfinished, num_jobs),
                                      description.notes, tuple(passed_over))
            _refuse_rejected(report, allow_rejected)
            write_json(dataset_json(description, report), unfinished.dataset / "dataset.json")
            write_json(report.to_json(description, options), unfinished.dataset / "conversion_report.json")
            write_metadata(report.usable, unfinished.dataset / "metadata.csv")
            if make_splits is not None and preprocessed is not None:
                # Before the dataset is there: without them nnU-Net would make folds of its own and say nothing, while
                # folds without a dataset mislead nobody, and the next run finds and keeps them.
                _write_splits(make_splits(report.usable), report, unfinished.folder, preprocessed)
            unfinished.dataset.replace(target)
        remove_folder(unfinished.folder)
    return report


def dataset_json(description: DatasetDescription, report: ConversionReport) -> dict[str, Any]:
    """nnU-Net's `dataset.json` with our block.

    Written here and not by nnU-Net's `generate_dataset_json`, which stores the release under `citation`.
    """
    return {
        "channel_names": {str(index): name for index, name in enumerate(description.channel_names)},
        "labels": dict(description.labels),
        "numTraining": sum(case.status != "rejected" for case in report.select("labelled")),
        "file_ending": description.file_ending,
        "overwrite_image_reader_writer": description.reader_writer,
        "name": report.dataset,
        "description": description.description,
        "reference": description.source,
        "citation": description.citation,
        "licence": description.licence,
        "converted_by": f"nnunet_synth {__version__}",
        "nnunet_synth": {
            "layout_labels": dict(description.layout_labels),
            "source": description.source,
            "licence": description.licence,
            **({"orientation": description.orientation} if description.orientation else {}),
            **({"notes": list(description.notes)} if description.notes else {}),
        },
    }


def check_ids(cases: Sequence[Case]) -> None:
    """Raises UserError: an id is used twice or can be no file name."""
    repeated = [case_id for case_id, number in Counter(case.id for case in cases).items() if number > 1]
    if repeated:
        files = [str(case.sources[0]) for case in cases if case.id == repeated[0]]
        raise UserError(f"{len(repeated)} case id(s) are used twice, e.g. {repeated[0]} for {' and '.join(files[:2])}: "
                        "rename the source files")
    for case in cases:
        if not re.fullmatch(r"[^.\s/\\:][^/\\:\x00-\x1f]*", case.id):
            raise UserError(f"case id {case.id!r} can be no file name: rename the source files")


def check_cases(cases: Sequence[Case], description: DatasetDescription, name: str, num_jobs: int) -> ConversionReport:
    """Read and check all, write nothing."""
    check = partial(convert_case, description=description, folder=None)
    reports = progress(parallel_map(check, cases, num_jobs), "check", total=len(cases))
    return ConversionReport(name, None, tuple(reports), description.notes)


def convert_cases(cases: Sequence[Case], description: DatasetDescription, unfinished: Unfinished,
                  num_jobs: int) -> tuple[CaseReport, ...]:
    """Read, check and write all that an earlier run has not finished, into `unfinished.dataset`."""
    reports = unfinished.resume(cases)
    if reports:
        print(f"{len(reports)} of {len(cases)} cases were converted before and are kept")
    convert = partial(_convert_and_record, description, unfinished)
    todo = [case for case in cases if case.id not in reports]
    for report in progress(parallel_map(convert, todo, num_jobs), "convert", total=len(cases), initial=len(reports)):
        reports[report.id] = report
    return tuple(reports[case.id] for case in cases)


def _refuse_rejected(report: ConversionReport, allow_rejected: bool) -> None:
    needed = [case for case in report.rejected if case.role != "unlabelled"]
    if needed and not allow_rejected:
        more = f" (and {len(needed) - 1} more: --check lists them)" if len(needed) > 1 else ""
        raise UserError(f"{needed[0].role} case {needed[0].id} was rejected: {needed[0].reason}{more}; mend the source "
                        "or leave such cases out with --allow-rejected")
    if not [case for case in report.select("labelled") if case.status != "rejected"]:
        reason = f": {needed[0].reason}" if needed else ""
        raise UserError(f"no labelled case is left, nnU-Net cannot plan such a dataset{reason}")


def _write_splits(splits: list[dict[str, Any]], report: ConversionReport, scratch: Path, preprocessed: Path) -> None:
    """Check the folds and write splits_final.json, unless the same is there already."""
    target = splits_file(preprocessed)
    if splits:
        checked = splits_file(scratch)
        write_json(splits, checked)
        labelled = {case.id for case in report.usable if case.role == "labelled"}
        for split in load_splits(scratch):
            check_split(split)
            unknown = {case for part in PARTS for case in split.get(part, ())} - labelled
            if unknown:
                raise UserError(f"the fold {split.get('name', '')} names {len(unknown)} case(s) that are no labelled "
                                f"cases of this dataset, e.g. {min(unknown)}")
    if target.exists() and (not splits or target.read_bytes() != checked.read_bytes()):
        raise UserError(f"{target} holds other folds than this conversion makes: remove it, or choose another -d")
    if splits:
        write_json(splits, target)


# ----------------------------------------------------------------------------------------------------------------------
# One case


def convert_case(case: Case, description: DatasetDescription, folder: Path | None) -> CaseReport:
    """Read, check and write one case (nothing is written without `folder`); a defect rejects it with its reason."""
    sources = {}
    try:
        content = case.read()
        # After reading: a missing file has its own message then.
        sources = {str(source): _sha256(source) for source in case.sources}
        _check_content(case, content, description)
    except UserError as error:
        return CaseReport(case.id, case.role, "rejected", reason=str(error), group=case.group,
                          sources=sources or {str(source): _sha256(source) for source in case.sources},
                          metadata=dict(case.metadata))
    files = () if folder is None else _write_content(case, content, description, folder)
    first = content.images[0]
    counts = {} if content.label is None else value_counts(content.label)
    return CaseReport(
        case.id, case.role, "repaired" if content.repairs else "written", repairs=content.repairs,
        has_label=content.label is not None, has_layout=content.layout is not None,
        label_counts={str(int(value)): count for value, count in counts.items()},
        shape=tuple(reversed(first.GetSize())), spacing=tuple(reversed(first.GetSpacing())), group=case.group,
        files=files, sources=sources, metadata={**case.metadata, **content.metadata})


def _convert_and_record(description: DatasetDescription, unfinished: Unfinished, case: Case) -> CaseReport:
    fingerprint = unfinished.fingerprint(case)      # before reading: a source that changes meanwhile is read again
    with scratch_folder(unfinished.scratch):
        report = convert_case(case, description, unfinished.dataset)
    if report.status != "rejected":
        unfinished.record(report, fingerprint)
    return report


def _check_content(case: Case, content: CaseContent, description: DatasetDescription) -> None:
    import SimpleITK
    if len(content.images) != len(description.channel_names):
        raise UserError(f"{len(content.images)} channel(s), expected {', '.join(description.channel_names)}")
    if case.role == "labelled" and content.label is None:
        raise UserError("no label: a labelled case needs one")
    if case.role == "unlabelled" and content.label is not None:
        raise UserError("an unlabelled case has a label")       # a converter's mistake, caught before it misleads
    reference = content.images[0]
    for image in content.images:
        dimensions = image.GetDimension()
        if dimensions != description.num_dimensions or min(image.GetSize()) < 1:
            raise UserError(f"the image is {dimensions}D of size {image.GetSize()}, expected "
                            f"{description.num_dimensions}D with one file for each channel")
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise UserError(f"{image.GetNumberOfComponentsPerPixel()} values a voxel, expected one")
        check_raw_image(SimpleITK.GetArrayViewFromImage(image), "the image")
        check_voxel_size("the image", image.GetSpacing(), image.GetSize())
        _check_geometry(image, reference, "channels")
    for map_image, name, declared in ((content.label, "label", description.labels),
                                      (content.layout, "layout", {"none": 0, **description.layout_labels})):
        if map_image is not None:
            _check_geometry(map_image, reference, name)
            _check_values(map_image, name, declared)


def _check_geometry(image: SimpleITK.Image, reference: SimpleITK.Image, name: str) -> None:
    if image.GetSize() != reference.GetSize():
        raise UserError(f"{name} and image differ in shape: {image.GetSize()} and {reference.GetSize()}")
    for what in ("Spacing", "Origin", "Direction"):
        own, others = getattr(image, f"Get{what}")(), getattr(reference, f"Get{what}")()
        if not np.allclose(own, others, atol=_GEOMETRY_TOLERANCE, rtol=_GEOMETRY_TOLERANCE):
            raise UserError(f"{name} and image differ in {what.lower()}: {_rounded(own)} and {_rounded(others)}")


def _check_values(image: SimpleITK.Image, name: str, declared: Mapping[str, int]) -> None:
    undeclared = [value for value in value_counts(image) if value not in set(declared.values())]
    if undeclared:
        known = ", ".join(f"{key}={value}" for key, value in declared.items())
        raise UserError(f"{name} holds undeclared value(s) {undeclared[:5]} (declared: {known})")


def _write_content(case: Case, content: CaseContent, description: DatasetDescription, folder: Path) -> tuple[str, ...]:
    """Returns what was written, relative to `folder`."""
    suffix, ending = SUFFIX[case.role], description.file_ending
    images = {f"images{suffix}/{case.id}_{channel:04d}{ending}": image for channel, image in enumerate(content.images)}
    for kind, image in (("labels", content.label), ("layouts", content.layout)):
        if image is not None:
            labels = images[f"{kind}{suffix}/{case.id}{ending}"] = _as_integers(image)
            labels.CopyInformation(content.images[0])           # they agree but for rounding
    for name, image in images.items():
        _write_image(image, folder / name)
    return tuple(images)


def _write_image(image: SimpleITK.Image, path: Path) -> None:
    import SimpleITK
    path.parent.mkdir(exist_ok=True)
    try:
        SimpleITK.WriteImage(image, str(path), useCompression=True)
        if path.suffix == ".gz":
            _check_length(image, path)
        else:
            check_file(path)
    except (RuntimeError, UserError) as error:
        raise UserError(f"{path} cannot be written, {_what_to_do(path)} and run the same command again "
                        f"({str(error).strip().splitlines()[-1]})") from error


def _what_to_do(path: Path) -> str:
    refused = refusal(path.parent, path)
    if refused is not None and refused.errno == errno.EFBIG:
        return "it is larger than the limit on the size of a file (ulimit -f): raise the limit"
    return f"{shutil.disk_usage(path.parent).free // 2**20} MB are free there: make room"


def _check_length(image: SimpleITK.Image, path: Path) -> None:
    """Raise UserError for a `.nii.gz` without its end: ITK's NIfTI writer does not notice that the disk is full.

    The last four bytes of gzip are the length of the content (RFC 1952), and are something else in the middle of it.
    """
    expected = _NIFTI_HEADER + image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    with open(path, "rb") as written:
        written.seek(max(0, path.stat().st_size - 4))
        length = int.from_bytes(written.read(), "little")
    if length != expected % 2**32:
        raise UserError(f"{path} is not complete")


def _as_integers(image: SimpleITK.Image) -> SimpleITK.Image:
    import SimpleITK
    return SimpleITK.Cast(image, SimpleITK.sitkUInt8 if SimpleITK.GetArrayViewFromImage(image).max(initial=0) < 256
                          else SimpleITK.sitkUInt16)


def _sha256(source: Source) -> str:
    try:
        return source.sha256()
    except UserError as error:
        return f"unreadable: {error}"


def _rounded(values: Iterable[float]) -> str:
    return json.dumps([round(float(value), 4) for value in values])
