"""The files of a download: in a folder, in archives in a folder, or in one archive.

Archives are read member by member and never unpacked: `SourceFile.on_disk` lends one file at a time. The names are
those that the files would have if every archive were extracted into a folder of its name beside it, so a converter does
not notice the difference:

    SOURCE/Lung_Mask.zip with coronacases_001.nii.gz    →  Lung_Mask/coronacases_001.nii.gz
    SOURCE = COVID-19-20_v2.zip with Train/x.nii.gz     →  Train/x.nii.gz

An archive beside its own extracted folder is not read. What would leave SOURCE (`../`, absolute names, links in
archives, links to somewhere else) is refused before anything is read; a link to another folder of SOURCE is not
followed, because its files are found there.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from nnunet_synth.dataset_conversion.archives import DAMAGE, READABLE, UNREADABLE, is_archive, open_archive
from nnunet_synth.errors import UserError

_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)


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
        """Its bytes, as a stream that can be sought. Raises UserError where it cannot be read, now or later."""
        try:
            stream = open_archive(self.root).open(self.name) if self.is_in_archive else \
                open(self.root / self.name, "rb", buffering=0)
        except UserError:
            raise
        except (FileNotFoundError, NotADirectoryError, KeyError) as error:
            raise UserError(f"{self} does not exist") from error
        except DAMAGE as error:
            raise self.refusal(error) from error
        with stream, io.BufferedReader(_Telling(stream, self), 1 << 20) as reader:
            yield reader

    def refusal(self, error: Exception) -> UserError:
        """What to tell the user of an error while reading it, one of `DAMAGE`."""
        if isinstance(error, OSError) and error.strerror:
            return UserError(f"{self} cannot be read: {error.strerror}")
        return UserError(f"{self} is truncated or corrupt: copy it again ({error})")

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """A path to read it by: itself, or a temporary copy of an archive's member, removed afterwards."""
        from nnunet_synth.data.raw_images import check_name
        if not self.is_in_archive:
            check_name(self.root / self.name)
            yield self.root / self.name
            return
        with tempfile.TemporaryDirectory(prefix="nnunet_synth_", dir=scratch()) as folder:
            copy = Path(folder) / self.path.name
            check_name(copy)
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


class _Telling(io.RawIOBase):
    """A stream whose errors while reading are told in one line that names the file."""

    def __init__(self, stream: IO[bytes], file: SourceFile) -> None:
        super().__init__()
        self._stream, self._file = stream, file
        self.name = str(file)           # pydicom asks a buffered stream for it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            block = self._stream.read(len(buffer))
        except DAMAGE as error:
            raise self._file.refusal(error) from error
        buffer[:len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._stream.seek(offset, whence)
        except DAMAGE as error:             # going back in a zip is reading it again
            raise self._file.refusal(error) from error

    def tell(self) -> int:
        return self._stream.tell()


@contextmanager
def scratch_folder(folder: Path | None) -> Iterator[None]:
    """Temporary copies of archives' members go to `folder` meanwhile; None = where the system puts such files."""
    token = _scratch.set(folder)
    try:
        yield
    finally:
        _scratch.reset(token)


def scratch() -> Path | None:
    """Where temporary copies go, as `tempfile` takes it."""
    return _scratch.get()


def list_files(source: str | Path, under: str = "") -> Iterator[SourceFile]:
    """Yield every file of a download in the order of names, a folder's files before its sub-folders'; hidden ones are
    left out.

    Lazy: a download of millions of files needs no memory for them.

    Args:
        source: a folder, or one archive (.zip, .tar).
        under: yield only what lies in this folder of the download ("" = everything).

    Raises:
        UserError: there is no such folder or archive, it cannot be read, or it holds names or links that leave it.
    """
    source = Path(source)
    try:
        exists, is_folder = source.exists(), source.is_dir()
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
    if not exists:
        raise UserError(f"{source} does not exist: give the folder of the download, extracted or not, or one archive")
    if is_folder:
        yield from _in_folder(source.resolve(), PurePosixPath(), PurePosixPath(under))
    elif is_archive(source):
        yield from _in_archive(source.resolve(), PurePosixPath(), PurePosixPath(under))
    else:
        raise UserError(f"{source} is neither a folder nor an archive that can be read ({', '.join(READABLE)}): "
                        "extract it and give the folder")


# ----------------------------------------------------------------------------------------------------------------------


def _in_folder(root: Path, folder: PurePosixPath, under: PurePosixPath) -> Iterator[SourceFile]:
    """Yield what lies in `folder` of `root`: its files, then those of its archives, then its sub-folders'."""
    try:
        with os.scandir(root / folder) as scan:
            entries = sorted((entry for entry in scan if not _is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_symlink():
            _check_link(Path(entry.path), root)
    subfolders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    files = [entry.name for entry in entries if entry.is_file()]
    extracted = {name.casefold() for name in subfolders}
    archives = []
    for name in files:
        if name.lower().endswith(READABLE + UNREADABLE):
            inside = folder / _extracted_name(name)
            if inside.name.casefold() not in extracted and _leads_to(inside, under):
                archives.append((name, inside))
        elif (folder / name).is_relative_to(under):
            yield SourceFile(root, str(folder / name))
    for name, inside in archives:
        if name.lower().endswith(UNREADABLE):
            raise UserError(f"{root / folder / name}: extract this archive first (or move it away), only "
                            f"{', '.join(READABLE)} can be read without unpacking")
        yield from _in_archive(root / folder / name, inside, under)
    for name in subfolders:
        if _leads_to(folder / name, under):
            yield from _in_folder(root, folder / name, under)


def _in_archive(archive: Path, prefix: PurePosixPath, under: PurePosixPath) -> Iterator[SourceFile]:
    for name in sorted(open_archive(archive).members):
        hidden = any(map(_is_hidden, name.split("/")))
        if not hidden and (prefix / name).is_relative_to(under):
            yield SourceFile(archive, name, f"{prefix}/" if prefix.parts else "")


def _check_link(path: Path, root: Path) -> None:
    try:
        leads_to = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:            # RuntimeError: a link to itself, before Python 3.13
        raise UserError(f"{path} is a link that leads nowhere: fetch the file, or remove the link") from error
    if not leads_to.is_relative_to(root):
        raise UserError(f"{path} is a link out of {root}: copy the file there, or give the folder it points to")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _extracted_name(archive: str) -> str:
    """The folder that an archive is extracted to by default."""
    ending = next(ending for ending in READABLE + UNREADABLE if archive.lower().endswith(ending))
    return archive[:-len(ending)]


def _leads_to(folder: PurePosixPath, under: PurePosixPath) -> bool:
    """Whether `folder` lies in `under` or on the way to it."""
    return folder.is_relative_to(under) or under.is_relative_to(folder)
