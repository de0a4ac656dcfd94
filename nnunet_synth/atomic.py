"""Files and folders that appear complete or not at all: write beside the target, then rename."""

import errno
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nnunet_synth.errors import UserError

ABANDONED_AFTER = 3600      # s; nobody writes one file, or one case, for an hour


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it becomes `target`, on any error it is removed.

    The data is flushed to the disk before the rename, so a crash (or `kill -9`) leaves the old file or the new one.

    Raises:
        OSError: with `errno` (ENOSPC, EDQUOT), where the writer failed because the disk is full.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = _affixes(target)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming_a_full_disk(target.parent, temporary):
            yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(target: str | Path) -> None:
    """Remove the temporary files (or flat folders) that writers of `target` left when they were killed.

    For what is large and written again and again, as checkpoints are. The young ones stay: another process may be
    writing them.
    """
    target = Path(target)
    prefix, suffix = _affixes(target)
    for path in target.parent.glob(f"{glob.escape(prefix)}*{glob.escape(suffix)}"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except FileNotFoundError:
            pass            # its writer has just renamed it


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it becomes `target`, on any error it is removed.

    Raises:
        FileExistsError: `target` exists already; nothing is overwritten.
        OSError: as `atomic_file`.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} already exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with naming_a_full_disk(target.parent, temporary):
            yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)        # renamed; or the error is what matters


def remove_folder(folder: str | Path) -> None:
    """Remove a folder with all that is in it, if it is there.

    Raises:
        UserError: something in it cannot be removed; the message names it.
    """
    if not os.path.lexists(folder):
        return
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be removed ({error.strerror}): see to it that you may "
                        f"write there, or remove {folder} yourself") from error


@contextmanager
def naming_a_full_disk(folder: str | Path, doomed: Path | None = None) -> Iterator[None]:
    """Where something in here fails and the disk of `folder` is full, or a file has reached the largest size that the
    system allows, raise an OSError that says so.

    torch, safetensors, blosc2, ITK and NumPy each tell of a full disk in words of their own, some in words about
    something else. The disk is asked before the incomplete file is removed.

    Args:
        doomed: the file, or the folder of files, that is removed when this fails.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = None if isinstance(error, OSError) and error.errno else refusal(Path(folder), doomed)
        if full is not None:
            raise full from error
        raise


def refusal(folder: Path, doomed: Path | None = None) -> OSError | None:
    """What the system answers to another megabyte in a new file of the folder; and at the end of the largest file of
    `doomed`, which is removed anyway, as that may have reached the largest size that is allowed.

    Returns:
        ENOSPC, EDQUOT, EFBIG, … of the folder; None = there is room.
    """
    files = [] if doomed is None else [path for path in (doomed, *doomed.rglob("*")) if path.is_file()]
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            _write_a_megabyte(probe)
        if files:
            with open(max(files, key=lambda path: path.stat().st_size), "ab") as probe:
                _write_a_megabyte(probe)
    except OSError as error:
        return OSError(error.errno, os.strerror(error.errno or errno.ENOSPC), str(folder))
    return None


def _write_a_megabyte(file: IO[bytes]) -> None:
    file.write(bytes(2 ** 20))
    file.flush()
    os.fsync(file.fileno())


def write_text(text: str, target: str | Path) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")     # names of files may hold any byte


def write_json(content: object, target: str | Path) -> None:
    """Write `content` as indented JSON, keeping the order of its keys, atomically."""
    write_text(json.dumps(content, indent=2) + "\n", target)


def _affixes(target: Path) -> tuple[str, str]:
    """Beginning and end of the names of temporary files for `target`.

    The ending is kept: many writers (SimpleITK, Pillow, matplotlib) choose the format by it.
    """
    return f".{target.name.split('.')[0]}.", "".join(target.suffixes[-2:])


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
