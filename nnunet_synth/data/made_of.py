"""What a stored file was made of: size, time and SHA-256 of each source, in a small JSON file, its note.

Times alone tell nothing: a scan that is replaced by a copy with an older time stamp (`rsync -a`, `cp -p`) is older than
what was made of the scan before it. They only spare the hashing: a source whose size and time are those in the note is
the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_synth.atomic import write_json
from nnunet_synth.errors import UserError

Stamps = dict[str, list]        # folder/name of a source → [bytes, time of modification in ns, SHA-256]


def stamps(sources: Iterable[Path]) -> Stamps:
    """To be taken before the sources are read: what changes meanwhile is noticed the next time.

    Raises:
        UserError: a source does not exist or cannot be read.
    """
    return {_name(source): [*_size_and_time(source), _sha256(source)] for source in sources}


def write_note(note: Path, sources: Stamps, **facts: Any) -> None:
    """Say what something was made of, after it was made; with facts that JSON can hold."""
    write_json({"sources": sources, **facts}, note)


def read_note(note: Path) -> dict[str, Any] | None:
    """What `write_note` wrote; None where there is nothing of the kind, so that it is made again."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        known = {name: list(stamp) for name, stamp in content["sources"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content if all(len(stamp) == 3 for stamp in known.values()) else None


def is_made_of(note: Path, sources: Iterable[Path]) -> bool:
    """The note names exactly these sources, and they have not changed since.

    A source of the same size and another time is hashed; if it is the same, the new time is noted, so that it is
    hashed once.

    Raises:
        UserError: as `stamps`.
    """
    content, sources = read_note(note), list(sources)
    if content is None or list(content["sources"]) != [_name(source) for source in sources]:
        return False
    now = {_name(source): _same(source, content["sources"][_name(source)]) for source in sources}
    if None in now.values():
        return False
    if now != content["sources"]:
        with suppress(OSError):         # where one may only read, it is hashed every time
            write_json({**content, "sources": now}, note)
    return True


def _same(source: Path, noted: list) -> list | None:
    """The stamp of a source that has not changed, else None."""
    size, time = _size_and_time(source)
    if [size, time] == noted[:2]:
        return noted
    return [size, time, noted[2]] if size == noted[0] and _sha256(source) == noted[2] else None


def _size_and_time(source: Path) -> tuple[int, int]:
    try:
        status = source.stat()
    except OSError as error:
        raise _unreadable(source, error) from error
    return status.st_size, status.st_mtime_ns


def _sha256(source: Path) -> str:
    try:
        with open(source, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: OSError) -> UserError:
    return UserError(f"{source} cannot be read: {error.strerror}")


def _name(source: Path) -> str:
    return f"{source.parent.name}/{source.name}"
