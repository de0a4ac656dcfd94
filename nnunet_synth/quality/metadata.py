"""What is known about the cases, as classes that a network can learn: sex and age group, as for UM2I's P₂ and P₃."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_synth.csv_file import from_cell
from nnunet_synth.dataset_conversion.nccid_clinical import clean_age, clean_sex
from nnunet_synth.errors import UserError

AGE_GROUPS = {"≤ 44": 44, "45–64": 64, "65–74": 74, "≥ 75": 200}     # name → highest age, years
MIN_CASES = 2           # of a class, so that one can be learnt from and one held out


def age_group(age: object) -> str | None:
    """One of AGE_GROUPS from years (71, "71.6", "071Y"); None for what is no age."""
    years = clean_age(age)
    return None if years is None else next(name for name, highest in AGE_GROUPS.items() if years <= highest)


READERS = {"sex": clean_sex, "age": age_group}


def read_metadata(file: Path) -> dict[str, dict[str, str]]:
    """Case id → column → text, from a CSV file with a column `id` (else the first column names the cases).

    Raises:
        UserError: the file cannot be read as CSV, or has no row.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")))
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist: give a CSV file with the columns id and sex or age") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise UserError(f"{file} holds no row: give a CSV file with the columns id and sex or age")
    key = "id" if "id" in rows[0] else next(iter(rows[0]))
    return {from_cell(row[key]): {from_cell(column).strip().lower(): from_cell(text) for column, text in row.items()
                                  if column and isinstance(text, str) and text} for row in rows if row[key]}


def classes_of(metadata: Mapping[str, Mapping[str, str]], cases: Sequence[str], column: str) -> list[str | None]:
    """The class of each case, None where it is not known or too rare to learn (fewer than two cases).

    Files are looked for by their names with and without the ending.
    """
    read = READERS.get(column, lambda text: text)
    rows = {case: metadata.get(case) or metadata.get(case.split(".")[0], {}) for case in set(cases)}
    found = {case: read(row[column]) for case, row in rows.items() if column in row}
    counts = Counter(found.values())
    return [found.get(case) if counts[found.get(case)] >= MIN_CASES else None for case in cases]
