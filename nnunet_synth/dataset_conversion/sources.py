"""The files of a download: in a folder, in archives in a folder, or in one archive.

Archives are read member by member and never unpacked: `SourceFile.on_disk` lends one file at a time. The names are
those that the files would have if every archive were extracted into a folder of its name beside it, so a converter does
not notice the difference:

    SOURCE/Lung_Mask.zip with coronacases_001.nii.gz    →  Lung_Mask/coronacases_001.nii.gz
    SOURCE = COVID-19-20_v2.zip with Train/x.nii.gz     →  Train/x.nii.gz

An archive beside its own extracted folder is not read twice. What would leave SOURCE (`../`, absolute names, links in
archives, links to somewhere else) is refused before anything is read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol

from nnunet_synth.errors import UserError

ARCHIVE_ENDINGS = (".zip", ".tar")
# One member of these can only be had by unpacking all that lies before it, or needs a program that we do not have.
UNREADABLE_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


class Source(Protocol):
    """Something a case is read from. `str()` of it names it in the report."""

    def sha256(self) -> str:
        """Digest of its content."""

    def stamp(self) -> str:
        """Changes when the content does, costs no reading: an interrupted conversion goes on by it."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a download; picklable.

    Attributes:
        root: the folder or the archive that holds it.
        name: path in `root`, with slashes.
        prefix: where `root` lies in the download; empty, or ending with a slash. Set for archives in a folder.
    """

    root: Path
    name: str
    prefix: str = ""

    @property
    def path(self) -> PurePosixPath:
        """Where it would lie in the extracted download."""
        return PurePosixPath(self.prefix + self.name)

    @property
    def is_in_archive(self) -> bool:
        return self.root.is_file()

    def __str__(self) -> str:
        return f"{self.root}:{self.name}" if self.is_in_archive else str(self.root / self.name)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes, as a stream. Raises UserError where it cannot be read."""
        try:
            if not self.is_in_archive:
                with open(self.root / self.name, "rb") as stream:
                    yield stream
            elif self.root.suffix.lower() == ".zip":
                with zipfile.ZipFile(self.root) as archive, archive.open(self.name) as stream:
                    yield stream
            else:
                with tarfile.open(self.root, "r:") as archive, archive.extractfile(self.name) as stream:
                    yield stream
        except FileNotFoundError as error:
            raise UserError(f"{self} does not exist") from error
        except OSError as error:
            raise UserError(f"{self} cannot be read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, tarfile.TarError, RuntimeError, EOFError, KeyError) as error:
            raise UserError(f"{self} cannot be read ({error}): copy the archive again") from error

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """A path to read it by: itself, or a temporary copy of an archive's member, removed afterwards."""
        if not self.is_in_archive:
            yield self.root / self.name
            return
        with tempfile.TemporaryDirectory(prefix="nnunet_synth_") as folder:
            copy = Path(folder) / self.path.name
            with self.open() as stream, open(copy, "wb") as written:
                shutil.copyfileobj(stream, written, 1 << 20)
            yield copy

    def read_bytes(self) -> bytes:
        with self.open() as stream:
            return stream.read()

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with self.open() as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def stamp(self) -> str:
        """Size and time of the file (of the whole archive, for a member)."""
        try:
            status = (self.root if self.is_in_archive else self.root / self.name).stat()
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"


def list_files(source: str | Path, under: str = "") -> Iterator[SourceFile]:
    """Yield every file of a download, folder by folder in the order of names; hidden ones are left out.

    Lazy: a download of millions of files needs no memory for them.

    Args:
        source: a folder, or one archive (.zip, .tar).
        under: yield only what lies in this folder of the download ("" = everything).

    Raises:
        UserError: there is no such folder or archive, it cannot be read, or it holds names or links that leave it.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source} does not exist: give the folder of the download, extracted or not, or one archive")
    source = source.resolve()
    if source.is_dir():
        yield from _in_folder(source, PurePosixPath(under))
        return
    if not _is_archive(source):
        raise UserError(f"{source} is neither a folder nor an archive that can be read ({', '.join(ARCHIVE_ENDINGS)}): "
                        "extract it and give the folder")
    yield from _in_archive(source, "", PurePosixPath(under))


# ----------------------------------------------------------------------------------------------------------------------


def _in_folder(root: Path, under: PurePosixPath) -> Iterator[SourceFile]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        subfolders[:] = sorted(name for name in subfolders
                               if not name.startswith(".") and _leads_to(relative / name, under))
        for name in subfolders:
            _check_link(Path(folder) / name, root)
        for name in sorted(files):
            path = Path(folder) / name
            if name.startswith("."):
                continue
            _check_link(path, root)
            if name.lower().endswith(UNREADABLE_ARCHIVES) and not name.lower().endswith(".nii.gz"):
                raise UserError(f"{path}: extract this archive first, only {', '.join(ARCHIVE_ENDINGS)} can be read "
                                "without unpacking")
            if _is_archive(path):
                if path.stem not in subfolders:             # it is extracted already
                    yield from _in_archive(path, f"{relative / path.stem}/", under)
            elif _is_inside(relative / name, under):
                yield SourceFile(root, (relative / name).as_posix())


def _check_link(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise UserError(f"{path} is a link out of {root}: copy the file there, or give the folder it points to")


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in ARCHIVE_ENDINGS


def _in_archive(archive: Path, prefix: str, under: PurePosixPath) -> Iterator[SourceFile]:
    for member in sorted(_members(archive)):
        if member.is_link:
            raise UserError(f"{archive} holds a link ({member.name}): such an archive is not read, extract it yourself")
        parts = PurePosixPath(member.name.replace("\\", "/")).parts
        if ".." in parts or member.name.startswith(("/", "\\")) or ":" in parts[0]:
            raise UserError(f"{archive} holds a name that leaves it ({member.name}): such an archive is not read")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if not hidden and _is_inside(PurePosixPath(prefix + member.name), under):
            yield SourceFile(archive, member.name, prefix)


class _Member(NamedTuple):
    name: str
    is_link: bool


def _members(archive: Path) -> list[_Member]:
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as opened:
                if any(info.flag_bits & 1 for info in opened.infolist()):
                    raise UserError(f"{archive} is encrypted: extract it yourself and give the folder")
                return [_Member(info.filename, stat.S_ISLNK(info.external_attr >> 16))
                        for info in opened.infolist() if not info.is_dir()]
        with tarfile.open(archive, "r:") as opened:
            return [_Member(info.name, not info.isfile()) for info in opened if not info.isdir()]
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is truncated or no archive ({error}): copy it again") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror or error}") from error


def _is_inside(path: PurePosixPath, folder: PurePosixPath) -> bool:
    return path.is_relative_to(folder)


def _leads_to(path: PurePosixPath, under: PurePosixPath) -> bool:
    """Whether `path` lies in the folder `under` or on the way to it."""
    return path.is_relative_to(under) or under.is_relative_to(path)
