"""Scans that are in the pool and among the labelled or test cases, or in the pool twice, whatever they are called.

What an image shows is found once and noted, that of labelled and test cases in

    nnUNet_preprocessed/DatasetXXX_Name/raw_contents/imagesTr/CASE.json     (imagesTs/CASE.json)

that of the pool while it is preprocessed, so that a training that finds all up to date reads no image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_synth import __version__
from nnunet_synth.atomic import write_json
from nnunet_synth.data.content import Content, equal_contents, near_copies
from nnunet_synth.data.made_of import is_made_of, read_note, stamps, write_note
from nnunet_synth.data.raw_images import list_cases, read_image
from nnunet_synth.errors import UserError
from nnunet_synth.parallel import parallel_map
from nnunet_synth.progress import progress

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

PARTS = ("imagesTr", "imagesTs")
Contents = Mapping[str, Content]                # by "imagesTr/CASE"


def contents_of_labelled_and_test(raw_folder: Path, notes: Path | None, ending: str, reader: type[BaseReaderWriter],
                                  num_processes: int = 1) -> tuple[dict[str, Content], list[str]]:
    """What every case of imagesTr and imagesTs shows, and why some could not be read, in sentences.

    Args:
        raw_folder: nnUNet_raw/DatasetXXX_Name.
        notes: see `notes_folder`; None = nothing is known and nothing noted.
        ending: of the image files.
        reader: nnU-Net's class for this dataset.

    Raises:
        UserError: a folder may not be read.
    """
    cases = [(f"{part}/{case_id}", files) for part in PARTS
             for case_id, files in list_cases(raw_folder / part, ending).items()]
    known, unknown = {}, []
    for name, files in cases:
        content = None if notes is None else noted_content(notes / f"{name}.json", files, reader=reader.__name__)
        if content is None:
            unknown.append((name, files))
        else:
            known[name] = content
    find = partial(_find_content, notes, reader)
    found = progress(parallel_map(find, unknown, num_processes), "reading labelled and test cases, to find copies",
                     total=len(unknown))
    failed = []
    for (name, _), content in zip(unknown, found, strict=True):
        if isinstance(content, str):
            failed.append(f"{name} was not compared with the pool: {content}")
        else:
            known[name] = content
    return known, failed


def _find_content(notes: Path | None, reader: type[BaseReaderWriter], case: tuple[str, list[Path]]) -> Content | str:
    """What a case shows, noted; or why it cannot be read, which is for whoever uses that case to refuse."""
    name, files = case
    try:
        sources = stamps(files)
        content = Content.of(read_image(files, reader())[0])
    except UserError as error:
        return str(error)
    if notes is not None:
        write_note(notes / f"{name}.json", sources, reader=reader.__name__, **content.to_json())
    return content


def notes_folder(preprocessed_folder: Path) -> Path:
    """Where it is noted what the cases of nnUNet_preprocessed/DatasetXXX_Name show."""
    return preprocessed_folder / "raw_contents"


def noted_content(note: Path, files: Sequence[Path], **facts: Any) -> Content | None:
    """What `write_note` noted of these files, with these facts; None where that is not known any more."""
    stored = read_note(note)
    if stored is None or any(stored.get(name) != fact for name, fact in facts.items()):
        return None
    try:
        return Content.from_json(stored) if is_made_of(note, files) else None
    except UserError:               # gone or not readable: whoever reads the file says so
        return None


def refuse_copies(pool: Contents, others: Contents) -> None:
    """Raise UserError if a case of the pool has the voxels of a labelled or test case."""
    known = {content.voxels: name for name, content in others.items() if content.structure is not None}
    copies = [f"{name} (the same as {known[content.voxels]})" for name, content in pool.items()
              if content.voxels in known]
    if copies:
        raise UserError(f"{len(copies)} case(s) of the pool hold the same voxels as a labelled or test case: "
                        f"{', '.join(copies[:3])}{', …' if len(copies) > 3 else ''}; remove them from imagesUl")


def suspicious_pairs(pool: Contents, others: Contents) -> Iterator[str]:
    """Sentences about what is no reason to stop, but should be known."""
    for names in equal_contents({**others, **pool}):
        yield f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''} hold the same voxels: " \
            + ("they count as often" if names[0] in pool else "training, validation and test cases are not independent")
    for name, other, correlation in near_copies(pool, others):
        yield f"{name} is nearly a copy of {other} (correlation {correlation:.4f}; mirrored, windowed, touched up?): " \
            "if it is one, remove it from imagesUl"


def compared(pool: Contents, others: Contents, result: Path) -> list[str]:
    """The sentences of `suspicious_pairs`. The same images are compared once: what was found is kept in `result`.

    Raises:
        UserError: see `refuse_copies`.
    """
    refuse_copies(pool, others)
    images = sorted((name, content.voxels) for name, content in {**others, **pool}.items())
    key = hashlib.sha256(json.dumps([__version__, images]).encode()).hexdigest()
    if (found := _kept(result, key)) is None:
        found = list(suspicious_pairs(pool, others))
        write_json({"images_sha256": key, "found": found}, result)
    return found


def _kept(result: Path, key: str) -> list[str] | None:
    try:
        stored = json.loads(result.read_text(encoding="utf-8"))
        return [str(sentence) for sentence in stored["found"]] if stored["images_sha256"] == key else None
    except (OSError, ValueError, KeyError, TypeError):      # compared with others, or not yet
        return None
