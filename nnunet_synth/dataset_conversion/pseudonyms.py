"""Ids that say nothing about a patient, and the table that leads back to the source, which its owner keeps.

An id is the beginning of a SHA-256 keyed by random bytes. They are drawn at the first conversion and stored with the
table, so that the ids are the same in every later one; without the table nobody can compute them, not even from a list
of all patients.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path

from nnunet_synth.atomic import write_json
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json

_ID_DIGITS = 16         # of 64: two of a million ids are alike with a chance of 1 in 40 million


class IdTable:
    """Ids and what they stand for, in a JSON file: {"salt": …, "ids": {id: {…}}}."""

    def __init__(self, file: Path) -> None:
        """Read `file`, or begin a new table where there is none. Raises UserError: it is no such table."""
        self.file = file
        if not file.exists():
            self._salt, self.ids = secrets.token_bytes(32), {}
            return
        mend = "restore it, or remove it (all ids will change then)"
        content = read_json(file, mend, mend)
        try:
            self._salt, self.ids = bytes.fromhex(content["salt"]), dict(content["ids"])
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{file} is no table of ids: {mend}") from error

    def id_of(self, kind: str, name: str) -> str:
        """The id of something, `kind_0123456789abcdef`: always the same in this table."""
        return f"{kind}_{hmac.digest(self._salt, f'{kind}/{name}'.encode(), hashlib.sha256).hex()[:_ID_DIGITS]}"

    def remember(self, case_id: str, **names: str) -> None:
        """Note what an id stands for."""
        self.ids[case_id] = names

    def save(self) -> None:
        """Write the table, for its owner's eyes only; nothing is written if it is there already."""
        content = {"about": "which patient each id is: keep this file to yourself, and keep it (the ids depend on it)",
                   "salt": self._salt.hex(), "ids": self.ids}
        try:
            if self.file.exists() and json.loads(self.file.read_text(encoding="utf-8")) == content:
                return
            write_json(content, self.file)
            os.chmod(self.file, 0o600)
        except OSError as error:
            raise UserError(f"{self.file} cannot be written ({error.strerror}): say where the table of ids is to be "
                            "kept (--id-table FILE)") from error


def without_names(text: str, roots: tuple[str, ...], names: tuple[str, ...]) -> str:
    """A message without paths below `roots`, without `names` and without UIDs."""
    for root in sorted(filter(None, roots), key=len, reverse=True):
        text = re.sub(re.escape(root) + r"[^:]*", "a file of it", text)
    for name in filter(None, names):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(withheld)", text)
    return re.sub(r"\d+(\.\d+){4,}", "(withheld)", text)
