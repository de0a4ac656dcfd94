"""What a converter hands to the writer: one case at a time, read only when the writer asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nnunet_synth.dataset_conversion.sources import Source
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

Role = Literal["labelled", "unlabelled", "test"]


@dataclass(frozen=True)
class CaseContent:
    """The voxels of one case, as they will stand in the nnU-Net dataset.

    SimpleITK images, because they carry their geometry: the writer compares spacing, origin and direction of image,
    label and layout. 2D pictures have spacing 1 and no direction.

    Attributes:
        images: one a channel, in the unit of the dataset (HU, gray values).
        label: integers declared in the dataset's labels; None where nobody labelled the case.
        layout: integer anatomy map, if the source has one.
        repairs: what was changed on the way here, one short phrase each ("mirrored left to right"), for the report.
        metadata: what only reading tells (the chosen series, the rejected ones); joins the case's metadata.
    """

    images: tuple[SimpleITK.Image, ...]
    label: SimpleITK.Image | None = None
    layout: SimpleITK.Image | None = None
    repairs: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One case of a source, found but not yet read.

    An interrupted conversion keeps a finished case while the stamps of its sources, its other attributes but `read`
    and the options of the converter are the same: whatever else decides the content belongs into `metadata`.

    Attributes:
        id: its name in the nnU-Net dataset, unique over all roles.
        role: `labelled` → imagesTr, `unlabelled` → imagesUl, `test` → imagesTs.
        sources: everything it is read from; names and SHA-256 go into the report.
        read: returns the content; runs in a worker process, so it is a module-level function or a partial of one.
            A UserError from it rejects this case with that reason.
        group: patient or volume, for splits that never part a group; empty if unknown.
        metadata: more that the source knows (JSON values), kept in the report; text and numbers also in metadata.csv.
    """

    id: str
    role: Role
    sources: tuple[Source, ...]
    read: Callable[[], CaseContent]
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PassedOver:
    """A file of the source that belongs to no case, and why; `find_cases` may yield them after the cases."""

    file: str
    reason: str


@dataclass(frozen=True)
class DatasetDescription:
    """What holds for all cases of a dataset; most of it goes into `dataset.json`.

    Attributes:
        name: default of `--name`, as in Dataset520_COVIDSemiSeg.
        channel_names: in order; `CT` = Hounsfield units, which nnU-Net normalises by the plan's statistics.
        labels: name → value; `background` is 0.
        file_ending: `.png` or `.nii.gz`; images and labels share it.
        reader_writer: nnU-Net's class that reads them.
        num_dimensions: 2 or 3; other images are rejected.
        licence, citation, source: as the publisher states them; `source` is where the data is to be had.
        layout_labels: name → value of the anatomy, if the source has layouts.
        orientation: axis codes of the ARRAY for pictures without geometry: the directions in which the row and the
            column index grow, of L R A P S I ("LP": rows run to the patient's left, columns to posterior).
        notes: sentences the user should read; printed and stored.
    """

    name: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]
    file_ending: str
    reader_writer: str
    num_dimensions: int
    licence: str
    citation: str
    source: str
    description: str = ""
    layout_labels: Mapping[str, int] = field(default_factory=dict)
    orientation: str = ""
    notes: tuple[str, ...] = ()


def parted(found: Iterable[Case | PassedOver]) -> tuple[list[Case], list[PassedOver]]:
    """What `find_cases` yields: the cases, and the files that belong to none."""
    found = list(found)
    return [one for one in found if isinstance(one, Case)], [one for one in found if isinstance(one, PassedOver)]


def reject(reason: str) -> CaseContent:
    """A `Case.read` for what is known to be unusable before reading: `partial(reject, reason)`."""
    raise UserError(reason)
