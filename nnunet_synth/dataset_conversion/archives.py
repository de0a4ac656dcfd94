"""Zip and tar archives that are read member by member, and refused where extracting them could do harm.

What is refused before any member is read: names that leave the archive (`../x`, `/x`, `C:\\x`), links and devices, one
name twice, archives in archives, encryption, compression that Python cannot undo.
"""

from __future__ import annotations

import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from nnunet_synth.errors import UserError

READABLE = (".zip", ".tar")
# One member of these can only be had by unpacking all that lies before it, or needs a program that we do not have.
UNREADABLE = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
# What the readers raise on archives that are damaged or out of reach, at once or in the middle of a member.
DAMAGE = (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError,
          RuntimeError)

_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA,
                getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_STORED)}


class Archive:
    """One archive, open for reading.

    Attributes:
        members: path of each file in it (with slashes, as extracting would write it) → the reader's own handle.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError: damaged, unreadable, or one of the things that are refused."""
        self.path = path
        try:
            self._reader = zipfile.ZipFile(path) if is_zip(path) else tarfile.open(path, "r:")
            listed = list(self._zip_members() if is_zip(path) else self._tar_members())
        except UserError:
            raise
        except DAMAGE as error:
            if isinstance(error, OSError) and error.strerror:
                raise UserError(f"{path} cannot be read: {error.strerror}") from error
            raise UserError(f"{path} is truncated or no archive ({error}): copy it again") from error
        self.members = dict(listed)
        if len(self.members) < len(listed):
            twice = Counter(name for name, _ in listed).most_common(1)[0][0]
            raise UserError(f"{path} holds {twice} twice: extract it yourself and give the folder")

    def open(self, name: str) -> IO[bytes]:
        """A member's bytes; raises KeyError where there is none of that name, and `DAMAGE`."""
        member = self.members[name]
        return self._reader.open(member) if is_zip(self.path) else self._reader.extractfile(member)

    def _zip_members(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        for info in self._reader.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)            # 0 where it was not packed on a Unix
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                self._refuse_link(info.filename)
            name = self._checked_name(info.filename.replace("\\", "/"))
            if info.is_dir() or kind == stat.S_IFDIR or info.filename.endswith("\\"):
                continue
            if info.flag_bits & 1:
                raise UserError(f"{self.path} is encrypted: extract it yourself and give the folder")
            if info.compress_type not in _ZIP_METHODS:
                raise UserError(f"{self.path} is compressed by a method (number {info.compress_type}) that cannot be "
                                "read: extract it yourself and give the folder")
            self._refuse_archive(name)
            yield name, info

    def _tar_members(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        for info in self._reader:
            if not (info.isfile() or info.isdir()):
                self._refuse_link(info.name)
            name = self._checked_name(info.name)
            if info.isfile():
                self._refuse_archive(name)
                yield name, info

    def _checked_name(self, name: str) -> str:
        path = PurePosixPath(name)
        if ".." in path.parts or path.is_absolute() or re.match("[A-Za-z]:", name):
            raise UserError(f"{self.path} holds a name that leaves it ({name}): such an archive is not read")
        return str(path)

    def _refuse_archive(self, name: str) -> None:
        if name.lower().endswith(READABLE + UNREADABLE):
            raise UserError(f"{self.path} holds another archive ({name}): extract the outer one and give its folder")

    def _refuse_link(self, name: str) -> None:
        raise UserError(f"{self.path} holds a link or a device ({name}): such an archive is not read, extract it "
                        "yourself and give the folder")


def open_archive(path: Path) -> Archive:
    """The archive, listed and checked once in this process and kept open for its next member.

    Raises:
        UserError: see `Archive`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return _open_archive(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _open_archive(path: Path, size: int, changed: int) -> Archive:
    return Archive(path)


def is_archive(path: Path | PurePosixPath) -> bool:
    """Whether its name is that of an archive which can be read."""
    return path.suffix.lower() in READABLE


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"
