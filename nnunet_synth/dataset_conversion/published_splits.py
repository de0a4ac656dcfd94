"""Published splits: case ids in a file, compared with the publication by hash, made into folds of what was written.

A split file is JSON, {"test": [ids], "val": [ids], …}, or an Excel sheet (.xlsx): the first row names the parts, each
column below lists their ids. The sheet that has most of the names is read, other columns are ignored.

What a fold says of a case travels as the case's metadata, fold name → part ("train", "unlabelled", "val", "test"):
`find_cases` decides once, `folds_of` only looks at what was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_synth.data.splits import PARTS
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json

if TYPE_CHECKING:
    from nnunet_synth.dataset_conversion.writer import CaseReport

Fold = Mapping[str, str]                # case id → its part in one fold
_TITLES = {"train": "labelled", "unlabelled": "unlabelled", "val": "validation", "test": "test"}


# ----------------------------------------------------------------------------------------------------------------------
# The file


def read_parts(file: str | Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The ids of the named parts.

    Raises:
        UserError: the file is missing, neither JSON nor .xlsx, damaged, lacks a part, or holds something else than ids.
    """
    file = Path(file)
    ending = file.suffix.lower()
    if ending not in (".json", ".xlsx"):
        raise UserError(f"{file} is neither .json nor .xlsx: give the published split file")
    found = _read_json(file) if ending == ".json" else _read_xlsx(file, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)} (it has: {', '.join(map(str, found)) or 'nothing'}): it is "
                        "not the split of this dataset")
    for name in names:
        if not isinstance(found[name], list) or not all(isinstance(case, str) and case for case in found[name]):
            raise UserError(f"\"{name}\" of {file} is not a list of case ids")
    return {name: found[name] for name in names}


def _read_json(file: Path) -> dict[str, Any]:
    found = read_json(file, "give the published split file", "copy it again")
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no named lists of case ids: it is not the split of this dataset")
    return found


def _read_xlsx(file: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    sheets = []
    for header, *rows in filter(None, read_sheets(file, file)):
        columns = {str(cell): index for index, cell in enumerate(header) if cell is not None}
        sheets.append({name: [row[index] for row in rows if row[index] is not None]
                       for name, index in columns.items()})
    return max(sheets, key=lambda sheet: len(sheet.keys() & set(names)), default={})


def read_sheets(workbook: Any, name: object) -> list[list[list[Any]]]:
    """The rows of every sheet of an .xlsx file, all of one length, text without blanks around it.

    Args:
        workbook: a path or a binary stream.
        name: of the file, for messages.

    Raises:
        UserError: it does not exist or is no workbook.
    """
    import openpyxl
    try:
        with closing(openpyxl.load_workbook(workbook, read_only=True, data_only=True)) as opened:
            sheets = [[[cell.strip() if isinstance(cell, str) else cell for cell in row]
                       for row in sheet.iter_rows(values_only=True)] for sheet in opened.worksheets]
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    except Exception as error:                      # openpyxl has no class of its own for what is no workbook
        raise UserError(f"{name} is no Excel workbook (.xlsx) or is damaged: copy it again ({error})") from error
    # Read-only sheets without stored dimensions come with rows that end at their last cell.
    return [[row + [None] * (max(map(len, rows)) - len(row)) for row in rows] for rows in sheets]


def ids_sha256(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids, one a line."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def compared(parts: Mapping[str, Iterable[str]], published: Mapping[str, str]) -> str:
    """How a file's lists relate to the published ones, given the latter's `ids_sha256`: the end of a sentence."""
    different = [name for name, ids in parts.items() if ids_sha256(ids) != published[name]]
    return (f"differs from the published split in {', '.join(different)}" if different else
            "is the published split (SHA-256 of its id lists)")


# ----------------------------------------------------------------------------------------------------------------------
# Folds


def assign(parts: Mapping[str, Sequence[str]], origin: object) -> dict[str, str]:
    """Part → ids, turned round. Raises UserError for an id that is listed twice; `origin` names the file."""
    part_of: dict[str, str] = {}
    for part, ids in parts.items():
        for case in ids:
            if case in part_of:
                raise UserError(f"{origin} lists {case} as {_TITLES[part_of[case]]} and as {_TITLES[part]} case of one "
                                "fold: a case belongs to one part")
            part_of[case] = part
    return part_of


def check_usable(folds: Mapping[str, Fold], labelled: Iterable[str], found: Iterable[str], origin: object,
                 advice: str = "") -> None:
    """Refuse a split with which nothing can be trained.

    Args:
        folds: fold name → id → part.
        labelled: ids that have labels.
        found: all ids that there are.
        origin: names the split.
        advice: what the user can do about missing labels.

    Raises:
        UserError: the ids are those of another dataset, or a fold has no labelled or no validation case left.
    """
    labelled, found = set(labelled), set(found)
    for name, fold in folds.items():
        if not found & fold.keys():
            raise UserError(f"none of the {len(fold)} ids of {origin} is there: it is the split of another dataset")
        for part in ("train", "val"):
            wanted = [case for case in fold if fold[case] == part]
            if not labelled & set(wanted):
                example = f" (e.g. {sorted(wanted)[0]})" if wanted else ""
                raise UserError(f"{name} has no {_TITLES[part]} case: none of the {len(wanted)} ids that {origin} "
                                f"names{example} is there with a label{advice}")


def folds_of(names: Sequence[str], cases: Sequence[CaseReport]) -> list[dict[str, Any]]:
    """The entries of splits_final.json, from the metadata of the cases that were written.

    "unlabelled" holds cases whose labels exist and are hidden; those of imagesUl belong to every fold anyway.
    """
    return [{"name": name, **{part: sorted(case.id for case in cases
                                           if case.role == "labelled" and case.metadata.get(name) == part)
                              for part in PARTS}} for name in names]


def report(folds: Mapping[str, Fold], cases: Sequence[CaseReport]) -> list[str]:
    """What of each fold was written, and which of its ids were not and why: lines for the user."""
    written = {case.id: case for case in cases}
    lines, lacking = [], {}
    for name, fold in folds.items():
        counts = []
        for part, title in _TITLES.items():
            wanted = [case for case in fold if fold[case] == part]
            got = [case for case in wanted if case in written and _serves(written[case], part)]
            lacking.update(dict.fromkeys(sorted(set(wanted) - set(got)), part))
            if wanted:
                counts.append(f"{title} {len(got):,} of {len(wanted):,}")
        lines.append(f"fold {name}: {', '.join(counts)}")
    for part, title in _TITLES.items():
        absent = [case for case in lacking if lacking[case] == part and case not in written]
        bare = [case for case in lacking if lacking[case] == part and case in written]
        lines += [f"{title} cases of the split that were not written: {_listed(absent)}"] if absent else []
        lines += [f"{title} cases of the split without a label, in imagesUl now: {_listed(bare)}"] if bare else []
    unnamed = [case.id for case in cases if not any(case.id in fold for fold in folds.values())]
    for role, place in (("labelled", "unused by its folds"), ("unlabelled", "in imagesUl all the same")):
        others = [case for case in unnamed if written[case].role == role]
        lines += [f"{role} cases that the split does not name, {place}: {_listed(others)}"] if others else []
    return lines


def _serves(case: CaseReport, part: str) -> bool:
    if part == "test":
        return case.role == "test" and case.has_label
    return case.role == "labelled" or (part == "unlabelled" and case.role == "unlabelled")


def _listed(ids: Sequence[str], most: int = 5) -> str:
    return f"{len(ids):,} ({', '.join(ids[:most])}{', …' if len(ids) > most else ''})"
