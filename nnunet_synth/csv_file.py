"""Tables for spreadsheets: a name that begins like a formula stays a name.

A spreadsheet runs a cell that begins with = + - @ (after a tab or line break too). Such text gets an apostrophe in
front, which spreadsheets take for "this is text"; numbers stay as they are, and reading takes the apostrophe off again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for the columns and one a row; keys that are no column are left out, what a row lacks is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(as_cell, columns))
    writer.writerows([as_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def as_cell(value: Any) -> Any:
    """Text that a spreadsheet takes for text; anything else as it is."""
    is_text = isinstance(value, str) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_text and value.startswith((*FORMULA, "'")) else value


def from_cell(text: str) -> str:
    """What `as_cell` was given."""
    return text[1:] if text[:1] == "'" and text[1:].startswith((*FORMULA, "'")) else text
