"""The one writer of nnU-Net raw datasets: every converter hands it cases, it checks, writes and reports them.

    DatasetXXX_Name/
      imagesTr labelsTr imagesUl imagesTs labelsTs layoutsTr layoutsUl layoutsTs    (those that have cases)
      dataset.json
      conversion_report.json     every case: written, repaired (how) or rejected (why), SHA-256 of its source files

The dataset appears complete or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth import __version__
from nnunet_synth.atomic import atomic_folder, write_json
from nnunet_synth.data.raw_images import check_file, check_raw_image
from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, Role
from nnunet_synth.dataset_conversion.sources import Source
from nnunet_synth.errors import UserError
from nnunet_synth.parallel import parallel_map
from nnunet_synth.progress import progress

if TYPE_CHECKING:
    import SimpleITK

SUFFIX: dict[Role, str] = {"labelled": "Tr", "unlabelled": "Ul", "test": "Ts"}
_GEOMETRY_TOLERANCE = 1e-3      # mm, and for direction cosines: headers are often rounded


@dataclass(frozen=True)
class CaseReport:
    """What became of one case."""

    id: str
    role: Role
    status: str                                     # written | repaired | rejected
    reason: str = ""                                # why it was rejected
    repairs: tuple[str, ...] = ()
    has_label: bool = False
    has_layout: bool = False
    label_counts: dict[str, int] = field(default_factory=dict)      # voxels of each label value
    shape: tuple[int, ...] = ()                     # of the array: [z, y, x] or [y, x]
    spacing: tuple[float, ...] = ()                 # mm, same order (1 where unknown)
    group: str = ""
    sources: dict[str, str] = field(default_factory=dict)           # path → SHA-256
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConversionReport:
    """What became of all of them."""

    dataset: str
    folder: Path | None                             # None: only checked
    cases: tuple[CaseReport, ...]

    def select(self, role: Role | None = None, status: str | None = None) -> list[CaseReport]:
        return [case for case in self.cases if role in (None, case.role) and status in (None, case.status)]

    @property
    def rejected(self) -> list[CaseReport]:
        return self.select(status="rejected")

    def to_json(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "converted_by": f"nnunet_synth {__version__}",
                "counts": {role: dict(Counter(case.status for case in self.select(role))) for role in SUFFIX},
                "cases": [asdict(case) for case in self.cases]}

    def table(self, max_rejected: int = 20) -> str:
        """Counts, then each kind of repair with its number of cases, then the rejected cases with their reasons."""
        lines = [f"{'part':<12}{'written':>9}{'repaired':>10}{'rejected':>10}{'labels':>8}"]
        for role in SUFFIX:
            cases = self.select(role)
            if cases:
                count = Counter(case.status for case in cases)
                lines.append(f"{role:<12}{count['written']:>9}{count['repaired']:>10}{count['rejected']:>10}"
                             f"{sum(case.has_label for case in cases):>8}")
        repairs = Counter(_kind(repair) for case in self.cases for repair in case.repairs)
        lines += [f"repaired: {number} x {repair}" for repair, number in repairs.most_common()]
        lines += [f"rejected: {case.role} {case.id}: {case.reason}" for case in self.rejected[:max_rejected]]
        if len(self.rejected) > max_rejected:
            lines.append(f"rejected: {len(self.rejected) - max_rejected} more, see conversion_report.json")
        return "\n".join(lines)


def write_dataset(cases: Iterable[Case], description: DatasetDescription, target: Path, *, num_jobs: int = 1,
                  check_only: bool = False, allow_rejected: bool = False) -> ConversionReport:
    """Write a whole nnU-Net raw dataset, or nothing.

    Args:
        cases: all cases of the source, found but not read.
        target: …/nnUNet_raw/DatasetXXX_Name; must not exist.
        num_jobs: worker processes; each holds one case in memory.
        check_only: read and check everything, write nothing.
        allow_rejected: write the dataset without the rejected cases. Rejected unlabelled cases are always left out.

    Raises:
        UserError: two cases have the same id; a labelled or test case was rejected; there is no labelled case.
    """
    cases = list(cases)
    _check_ids(cases)
    if check_only:
        return _report(cases, description, None, target.name, num_jobs)
    if target.exists():
        raise UserError(f"{target} exists; choose another -d or remove it")
    with atomic_folder(target) as folder:
        report = _report(cases, description, folder, target.name, num_jobs)
        _refuse_rejected(report, allow_rejected)
        write_json(dataset_json(description, report), folder / "dataset.json")
        write_json(report.to_json(), folder / "conversion_report.json")
    return ConversionReport(report.dataset, target, report.cases)


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


def _check_ids(cases: list[Case]) -> None:
    repeated = [case_id for case_id, number in Counter(case.id for case in cases).items() if number > 1]
    if repeated:
        files = [str(case.sources[0]) for case in cases if case.id == repeated[0]]
        raise UserError(f"{len(repeated)} case id(s) are used twice, e.g. {repeated[0]} for {' and '.join(files[:2])}: "
                        "rename the source files")


def _refuse_rejected(report: ConversionReport, allow_rejected: bool) -> None:
    needed = [case for case in report.rejected if case.role != "unlabelled"]
    if needed and not allow_rejected:
        more = f" (and {len(needed) - 1} more: --check lists them)" if len(needed) > 1 else ""
        raise UserError(f"{needed[0].role} case {needed[0].id} was rejected: {needed[0].reason}{more}; mend the source "
                        "or leave such cases out with --allow-rejected")
    if not [case for case in report.select("labelled") if case.status != "rejected"]:
        reason = f": {needed[0].reason}" if needed else ""
        raise UserError(f"no labelled case is left, nnU-Net cannot plan such a dataset{reason}")


def _report(cases: list[Case], description: DatasetDescription, folder: Path | None, name: str,
            num_jobs: int) -> ConversionReport:
    convert = partial(convert_case, description=description, folder=folder)
    verb = "convert" if folder else "check"
    done = progress(parallel_map(convert, cases, num_jobs), verb, total=len(cases))
    return ConversionReport(name, folder, tuple(done))


def _kind(repair: str) -> str:
    return " ".join("N" if word.isdigit() else word for word in repair.split())


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
    if folder is not None:
        _write_content(case, content, description, folder)
    first = content.images[0]
    return CaseReport(
        case.id, case.role, "repaired" if content.repairs else "written", repairs=content.repairs,
        has_label=content.label is not None, has_layout=content.layout is not None,
        label_counts=_label_counts(content.label), shape=tuple(reversed(first.GetSize())),
        spacing=tuple(reversed(first.GetSpacing())), group=case.group, sources=sources,
        metadata={**case.metadata, **content.metadata})


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
        _check_geometry(image, reference, "channels")
    for map_image, name, declared in ((content.label, "label", description.labels),
                                      (content.layout, "layout", {"none": 0, **description.layout_labels})):
        if map_image is not None:
            _check_geometry(map_image, reference, name)
            _check_values(SimpleITK.GetArrayViewFromImage(map_image), name, declared)


def _check_geometry(image: SimpleITK.Image, reference: SimpleITK.Image, name: str) -> None:
    if image.GetSize() != reference.GetSize():
        raise UserError(f"{name} and image differ in shape: {image.GetSize()} and {reference.GetSize()}")
    for what in ("Spacing", "Origin", "Direction"):
        own, others = getattr(image, f"Get{what}")(), getattr(reference, f"Get{what}")()
        if not np.allclose(own, others, atol=_GEOMETRY_TOLERANCE, rtol=_GEOMETRY_TOLERANCE):
            raise UserError(f"{name} and image differ in {what.lower()}: {_rounded(own)} and {_rounded(others)}")


def _check_values(values: np.ndarray, name: str, declared: Any) -> None:
    undeclared = [value.item() for value in np.unique(values) if value not in set(declared.values())]
    if undeclared:
        known = ", ".join(f"{key}={value}" for key, value in declared.items())
        raise UserError(f"{name} holds undeclared value(s) {undeclared[:5]} (declared: {known})")


def _write_content(case: Case, content: CaseContent, description: DatasetDescription, folder: Path) -> None:
    suffix, ending = SUFFIX[case.role], description.file_ending
    for channel, image in enumerate(content.images):
        _write_image(image, folder / f"images{suffix}" / f"{case.id}_{channel:04d}{ending}")
    if content.label is not None:
        _write_image(_as_integers(content.label), folder / f"labels{suffix}" / f"{case.id}{ending}")
    if content.layout is not None:
        _write_image(_as_integers(content.layout), folder / f"layouts{suffix}" / f"{case.id}{ending}")


def _write_image(image: SimpleITK.Image, path: Path) -> None:
    import SimpleITK
    path.parent.mkdir(exist_ok=True)
    try:
        SimpleITK.WriteImage(image, str(path), useCompression=True)
        check_file(path)                            # ITK's NIfTI writer does not notice that the disk is full
    except (RuntimeError, UserError) as error:
        free = shutil.disk_usage(path.parent).free // 2**20
        raise UserError(f"{path} cannot be written, {free} MB are free there: make room and convert again "
                        f"({str(error).strip().splitlines()[-1]})") from error


def _as_integers(image: SimpleITK.Image) -> SimpleITK.Image:
    import SimpleITK
    return SimpleITK.Cast(image, SimpleITK.sitkUInt8 if SimpleITK.GetArrayViewFromImage(image).max(initial=0) < 256
                          else SimpleITK.sitkUInt16)


def _label_counts(label: SimpleITK.Image | None) -> dict[str, int]:
    if label is None:
        return {}
    import SimpleITK
    values, counts = np.unique(SimpleITK.GetArrayViewFromImage(label), return_counts=True)
    return {str(int(value)): int(count) for value, count in zip(values, counts, strict=True)}


def _sha256(source: Source) -> str:
    try:
        return source.sha256()
    except UserError as error:
        return f"unreadable: {error}"


def _rounded(values: Iterable[float]) -> str:
    return json.dumps([round(float(value), 4) for value in values])
