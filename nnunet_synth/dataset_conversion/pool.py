"""Scans added to the pool (`imagesUl`) of an existing raw dataset, whatever their role was and without their labels.

    nnUNet_raw/DatasetXXX_Name/
      imagesUl layoutsUl                        + the new cases
      conversion_report_TYPE.json               what became of each; TYPE_2 the second time
      metadata_TYPE.csv
      .adding_TYPE/                             the addition under way (`unfinished.py`); moving.json: all is there

The new files wait in the hidden folder until all are there, then they are moved. A run that is killed while it moves is
finished by the next one, so nobody finds half an image, or images that no report knows.

A scan that is a labelled or test case already, whatever it is called there, is rejected.

A source may grow: what an earlier addition of it brought stays as it is, and only the new scans are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synth.atomic import remove_folder, write_json
from nnunet_synth.data.content import voxels_sha256
from nnunet_synth.data.raw_images import check_name, list_cases
from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, PassedOver, parted
from nnunet_synth.dataset_conversion.report import CaseReport, ConversionReport, write_metadata
from nnunet_synth.dataset_conversion.unfinished import Unfinished, digest
from nnunet_synth.dataset_conversion.volumes import ORIENTATION
from nnunet_synth.dataset_conversion.writer import check_cases, check_ids, convert_cases
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object
from nnunet_synth.lock import only_writer

_IF_MISSING, _IF_DAMAGED = "give the id of an existing raw dataset", "correct it"


def add_to_pool(found: Iterable[Case | PassedOver], description: DatasetDescription, dataset: Path, source_type: str, *,
                num_jobs: int = 1, check_only: bool = False,
                options: Mapping[str, Any] | None = None) -> ConversionReport:
    """Add every usable case of a source to the pool; those that cannot be used are reported.

    Args:
        found: all cases of the source, not read yet, and its files that belong to none.
        dataset: nnUNet_raw/DatasetXXX_Name, which exists.
        source_type: name of the converter, for the names of the report and of the hidden folder.
        num_jobs, check_only, options: as in `write_dataset`.

    Raises:
        UserError: the scans do not fit the dataset, an id is there already (and not from this source) or twice, there
            is nothing new or nothing that can be used, or another process is writing there.
    """
    description = _fitted(description, dataset)
    cases, passed_over = parted(found)
    cases = [_without_label(case, keep_layout=bool(description.layout_labels)) for case in cases]
    check_ids(cases)
    if check_only:
        cases, description = _new_ones(cases, description, dataset, source_type)
        cases = _without_copies(cases, description, dataset, num_jobs, notes=None)
        return replace(check_cases(cases, description, dataset.name, num_jobs), passed_over=tuple(passed_over))
    options = options or {}
    with only_writer(dataset):
        unfinished = Unfinished.of(dataset / f".adding_{source_type}", description, options)
        command = digest([unfinished.fingerprint(case) for case in cases])
        moved = _finish_moving(unfinished, dataset)         # of a run that was killed
        if moved is None or moved["command"] != command:
            cases, description = _new_ones(cases, description, dataset, source_type)
            cases = _without_copies(cases, description, dataset, num_jobs, _notes(dataset))
            with unfinished.kept_if_stopped():
                report = ConversionReport(dataset.name, dataset,
                                          convert_cases(cases, description, unfinished, num_jobs),
                                          passed_over=tuple(passed_over))
                if not report.usable:
                    raise UserError(f"none of {len(cases)} scans can be used"
                                    + (f", e.g. {cases[0].id}: {report.cases[0].reason}" if cases else ""))
                name = _free_name(dataset, source_type)
                write_json(report.to_json(description, options), unfinished.dataset / f"conversion_report_{name}.json")
                write_metadata(report.usable, unfinished.dataset / f"metadata_{name}.csv")
                write_json({"command": command, "report": f"conversion_report_{name}.json"}, _mark(unfinished))
            moved = _finish_moving(unfinished, dataset)
    stored = read_object(dataset / moved["report"], "give the same command again", "move it elsewhere", "cases")
    return ConversionReport(dataset.name, dataset, tuple(map(CaseReport.from_json, stored["cases"])), description.notes,
                            tuple(passed_over))


def _finish_moving(unfinished: Unfinished, dataset: Path) -> dict[str, Any] | None:
    """Where everything was ready to be moved, move what is not in `dataset` yet; returns the mark, else None."""
    if not _mark(unfinished).exists():
        return None
    mark = read_object(_mark(unfinished), "give the same command again", f"remove {unfinished.folder}",
                       "command", "report")
    # A layout before its image, and the report when all is done.
    for folder in ("layoutsUl", "imagesUl", "."):
        for file in sorted((unfinished.dataset / folder).glob("*.*")):
            (dataset / folder).mkdir(exist_ok=True)
            file.replace(dataset / folder / file.name)
    remove_folder(unfinished.folder)        # its mark would be taken for the next addition's
    return mark


def _mark(unfinished: Unfinished) -> Path:
    return unfinished.folder / "moving.json"


def _free_name(dataset: Path, source_type: str) -> str:
    names = (source_type if number == 1 else f"{source_type}_{number}" for number in count(1))
    return next(name for name in names if not (dataset / f"conversion_report_{name}.json").exists())


# ----------------------------------------------------------------------------------------------------------------------
# Does it fit?


def _fitted(description: DatasetDescription, dataset: Path) -> DatasetDescription:
    """The description of the new scans, with the layouts left out where the dataset has others, and notes that say so.

    Raises:
        UserError: there is no such dataset, or it has other channels, another file ending or another orientation.
    """
    content = read_object(dataset / "dataset.json", _IF_MISSING, _IF_DAMAGED, "file_ending")
    ours = content.get("nnunet_synth", {})
    for what, old, new in (("channels", list(content.get("channel_names", {}).values()),
                            list(description.channel_names)),
                           ("file ending", content.get("file_ending"), description.file_ending),
                           ("orientation", ours.get("orientation", ""), description.orientation)):
        if old != new:
            raise UserError(f"the new scans do not fit {dataset.name}: its {what} is {old}, theirs is {new}")
    notes = _orientation_note(description, dataset, content)
    declared = dict(ours.get("layout_labels", {}))
    if description.layout_labels and declared != dict(description.layout_labels):
        notes += (f"the layouts of the new scans are left out: {dataset.name} declares {declared or 'none'}, they hold "
                  f"{dict(description.layout_labels)}",)
        description = replace(description, layout_labels={})
    return replace(description, notes=description.notes + notes)


def _orientation_note(description: DatasetDescription, dataset: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """nnU-Net looks at arrays, whose axes the converters of volumes turn to LPS: does the dataset lie so too?"""
    import SimpleITK
    images = list_cases(dataset / "imagesTr", description.file_ending)
    if description.num_dimensions != 3 or not images or "Reorient" in content.get("overwrite_image_reader_writer", ""):
        return ()
    case_id, files = next(iter(images.items()))
    check_name(files[0])
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(files[0]))
    try:
        header.ReadImageInformation()
        own = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(header.GetDirection())
    except RuntimeError as error:
        raise UserError(f"{files[0]} cannot be read ({str(error).strip().splitlines()[-1]}): mend the dataset") \
            from error
    if own == ORIENTATION:
        return ()
    return (f"the new arrays lie in {ORIENTATION}, {case_id} of {dataset.name} lies in {own}, and nnU-Net does not "
            "turn images: left and right, or front and back, may be exchanged between the two",)


def _new_ones(cases: Sequence[Case], description: DatasetDescription, dataset: Path,
              source_type: str) -> tuple[list[Case], DatasetDescription]:
    """The cases without those that an earlier addition read from the same files, and a note of how many they are.

    Raises:
        UserError: the dataset has another case of the same id, or nothing is new.
    """
    content = read_object(dataset / "dataset.json", _IF_MISSING, _IF_DAMAGED, "file_ending")
    existing = {case_id: folder for folder in ("imagesTr", "imagesTs", "imagesUl")
                for case_id in list_cases(dataset / folder, content["file_ending"])}
    earlier = _sources_of_earlier(dataset, source_type)
    new = [case for case in cases
           if existing.get(case.id) != "imagesUl" or earlier.get(case.id) != {str(source) for source in case.sources}]
    if cases and not new:
        raise UserError(f"all {len(cases)} scans are in {dataset.name} already: there is nothing to add")
    both = [case for case in new if case.id in existing]
    if both:
        raise UserError(f"{len(both)} case(s) are in {dataset.name} already, e.g. {both[0].id} in "
                        f"{existing[both[0].id]}: remove them there or from the source")
    if len(new) < len(cases):
        note = f"{len(cases) - len(new)} scan(s) were added before and stay as they are"
        description = replace(description, notes=(*description.notes, note))
    return new, description


def _sources_of_earlier(dataset: Path, source_type: str) -> dict[str, set[str]]:
    """Id → names of the sources, of all cases that earlier additions of this type brought."""
    found: dict[str, set[str]] = {}
    for file in dataset.glob(f"conversion_report_{source_type}*.json"):
        if re.fullmatch(r"(_\d+)?", file.stem.removeprefix(f"conversion_report_{source_type}")):
            report = read_object(file, "", "move it elsewhere", "cases")
            found |= {case["id"]: set(case["sources"]) for case in report["cases"] if case["status"] != "rejected"}
    return found


def _without_label(case: Case, keep_layout: bool) -> Case:
    return replace(case, role="unlabelled", read=partial(_read_without_label, case, keep_layout))


def _read_without_label(case: Case, keep_layout: bool) -> CaseContent:
    content = case.read()
    return replace(content, label=None, layout=content.layout if keep_layout else None)


# ----------------------------------------------------------------------------------------------------------------------
# Is it there already, under another name?


def _without_copies(cases: Sequence[Case], description: DatasetDescription, dataset: Path, num_jobs: int,
                    notes: Path | None) -> list[Case]:
    """The same cases; one with the voxels of a labelled or test case raises UserError when it is read."""
    from nnunet_synth.data.find_layouts import reader_writer_of
    from nnunet_synth.data.pool_copies import contents_of_labelled_and_test
    content = read_object(dataset / "dataset.json", _IF_MISSING, _IF_DAMAGED)
    reader = type(reader_writer_of(content, dataset / f"CASE{description.file_ending}"))
    others, _ = contents_of_labelled_and_test(dataset, notes, description.file_ending, reader, num_jobs)
    known = {other.voxels: name for name, other in others.items() if other.structure is not None}
    return [replace(case, read=partial(_read_unless_known, case, known)) for case in cases]


def _read_unless_known(case: Case, known: Mapping[str, str]) -> CaseContent:
    import SimpleITK
    content = case.read()
    channels = [SimpleITK.GetArrayViewFromImage(image) for image in content.images]
    same = {channel.shape for channel in channels} == {channels[0].shape}       # else the writer rejects it
    array = np.stack(channels) if same else channels[0][None]
    name = known.get(voxels_sha256(array if array.ndim == 4 else array[:, None]))
    if name is not None:
        raise UserError(f"holds the same voxels as {name} of the dataset: it would leak into the unlabelled scans")
    return content


def _notes(dataset: Path) -> Path | None:
    """Where what the dataset's cases show is noted; None where it was not planned yet."""
    from nnunet_synth.data.pool_copies import notes_folder
    preprocessed = Path(os.environ.get("nnUNet_preprocessed", "")) / dataset.name
    return notes_folder(preprocessed) if "nnUNet_preprocessed" in os.environ and preprocessed.is_dir() else None
