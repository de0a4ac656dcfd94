"""NCCID's clinical JSON files: the few fields that image quality may depend on, cleaned, and nothing that identifies.

`data/PATIENT/data_YYYY-MM-DD.json` belongs to a patient with a positive swab, `status_YYYY-MM-DD.json` to one with a
negative swab. The latest `data_` file counts, else the latest `status_` file. Field names, formats and anomalies are
those of NCCID_schema_compliance_v2.1.xlsx.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.errors import UserError

OLDEST_AGE = 90         # older ages are told as this: there are few such people, and each could be found

_NAME = re.compile(r"(?P<kind>data|status)_(?P<date>\d{4}-\d{2}-\d{2})\.json", re.IGNORECASE)
_SEX = {"F": "F", "FEMALE": "F", "0": "F", "M": "M", "MALE": "M", "1": "M"}
_STATUS = {"0": "negative", "NEGATIVE": "negative", "1": "positive", "POSITIVE": "positive"}


@dataclass(frozen=True)
class Clinical:
    """What is known about a patient.

    Attributes:
        fields: covid_status, sex, age, centre, as far as they are known.
        swab: when the swab was taken; never written, see `days_from_swab`.
        note: what was wrong with the files; empty if nothing.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    swab: date | None = None
    note: str = ""

    def days_from_swab(self, scan: date | None) -> dict[str, int]:
        """Days from the swab to the scan: what matters, while the two dates would help to find the patient."""
        return {"days_from_swab_to_scan": (scan - self.swab).days} if scan and self.swab else {}


def read_clinical(files: Sequence[SourceFile], patient: str) -> Clinical:
    """Read the file that counts; what is missing or wrong is left out and noted, never an error.

    Args:
        files: all files of the patient's folder.
        patient: the name of the folder, which the file repeats as its Pseudonym.
    """
    found = sorted(((match["kind"].lower(), match["date"], file) for file in files
                    if (match := _NAME.fullmatch(file.path.name))), key=lambda entry: entry[:2])
    kinds = [kind for kind, _, _ in found]
    if not found:
        return Clinical(note="no clinical file")
    kind = "data" if "data" in kinds else "status"
    file = [file for of_kind, _, file in found if of_kind == kind][-1]
    # A data_ file is a positive patient's, whether or not it can be read.
    known = {"covid_status": "positive"} if kind == "data" else {}
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return Clinical(known, note=f"the {kind}_ file is not valid JSON")
    except UserError:
        return Clinical(known, note=f"the {kind}_ file cannot be read")
    if not isinstance(content, dict):
        return Clinical(known, note=f"the {kind}_ file holds no fields")
    pseudonym = content.get("Pseudonym")
    if pseudonym is not None and str(pseudonym).strip() != patient:
        return Clinical(note=f"the {kind}_ file is another patient's")
    if kind == "status":
        known["covid_status"] = _STATUS.get(_text(content.get("SwabStatus")).upper(), "negative")
    return _clean(content, known)


def _clean(content: dict[str, Any], known: dict[str, Any]) -> Clinical:
    values = {"Sex": clean_sex(content.get("Sex")), "Age": clean_age(content.get("Age")),
              "SubmittingCentre": _text(content.get("SubmittingCentre")) or None,
              "Date of Positive Covid Swab": clean_date(content.get("Date of Positive Covid Swab"), day_first=False),
              "SwabDate": clean_date(content.get("SwabDate"), day_first=True)}
    odd = [name for name, value in values.items() if value is None and _text(content.get(name))]
    fields = {"sex": values["Sex"], "age": values["Age"], "centre": values["SubmittingCentre"]}
    return Clinical({**known, **{name: value for name, value in fields.items() if value is not None}},
                    swab=values["Date of Positive Covid Swab"] or values["SwabDate"],
                    note=f"not understood: {', '.join(odd)}" if odd else "")


def clean_sex(value: Any) -> str | None:
    """F, M, 0 (female) or 1 (male) → F or M; anything else → None."""
    return _SEX.get(_text(value).upper().removesuffix(".0"))


def clean_age(value: Any) -> int | None:
    """Years, to the nearest integer, at most `OLDEST_AGE`; 71, "71.6", or DICOM's "071Y", "018M" → None if neither."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)([YMWD]?)", _text(value).upper())
    if not found:
        return None
    years = float(found[1]) / {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}[found[2]]
    years = math.floor(years) if found[2] else math.floor(years + 0.5)
    return min(years, OLDEST_AGE) if years <= 120 else None


def clean_date(value: Any, day_first: bool) -> date | None:
    """A date: DD/MM/YYYY if `day_first`, else MM/DD/YYYY (or the other, where only that one exists), or an ISO date in
    other text ("[Text] - 2020-03-20"). None if it is neither.
    """
    text = _text(value)
    if iso := re.search(r"\b(\d{4})-(\d{2})-(\d{2})\b", text):
        return _date(*map(int, iso.groups()))
    found = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})", text)
    if not found:
        return None
    first, second, year = map(int, found.groups())
    year += 2000 if year < 100 else 0
    as_said, other = ((second, first), (first, second)) if day_first else ((first, second), (second, first))
    return _date(year, *as_said) or _date(year, *other)


def _date(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _text(value: Any) -> str:
    """Text of text or a number; empty for null, lists and objects."""
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
