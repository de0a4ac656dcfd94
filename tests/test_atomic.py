"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
from pathlib import Path

import pytest

from nnunet_synth.atomic import atomic_file, atomic_folder, remove_folder, write_text
from nnunet_synth.errors import UserError
from tests.privileges import without_privileges


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that is written is on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))


def write(kind: str, target: Path, error: Exception | None = None) -> None:
    if kind == "file":
        with atomic_file(target) as temporary:
            temporary.write_text("new")
            if error is not None:
                raise error
    else:
        with atomic_folder(target) as temporary:
            (temporary / "a").write_text("new")
            if error is not None:
                raise error


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_complete_or_not_at_all(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "deep" / "scan.nii.gz"
    with pytest.raises(ZeroDivisionError):
        write(kind, target, ZeroDivisionError())
    assert not list(target.parent.iterdir())
    write(kind, target)
    assert [path.name for path in target.parent.iterdir()] == ["scan.nii.gz"]
    usual = tmp_path / "usual"
    usual.touch() if kind == "file" else usual.mkdir()
    assert target.stat().st_mode == usual.stat().st_mode     # temporary files are private, results are not


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "scan.nii.gz"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write("file", target, ZeroDivisionError())
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    target.mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        write("folder", target)
    assert not list(target.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [RuntimeError("Error while creating the NDArray"),                    # blosc2
                                   RuntimeError("PytorchStreamWriter failed writing file data/0"),      # torch
                                   OSError("6544 requested and 992 written")])                          # NumPy
def test_a_full_disk_is_named_whatever_the_writer_says(tmp_path: Path, full_disk: None, kind: str,
                                                       error: Exception) -> None:
    with pytest.raises(OSError) as raised:
        write(kind, tmp_path / "scan.nii.gz", error)
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path)
    assert raised.value.__cause__ is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [UserError("the user's mistake"), OSError(errno.ENOENT, os.strerror(errno.ENOENT))])
def test_what_is_known_is_not_blamed_on_the_disk(tmp_path: Path, full_disk: None, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        write("file", tmp_path / "a.txt", error)
    assert raised.value is error


def test_where_there_is_room_the_error_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        write("file", tmp_path / "a.txt", RuntimeError("something else"))
    assert not list(tmp_path.iterdir())


def test_a_report_names_files_whatever_bytes_are_in_their_names(tmp_path: Path) -> None:
    write_text("| scan_\udcff → é |", tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "| scan_\\udcff → é |"


def test_the_largest_size_of_a_file_is_called_so(tmp_path: Path) -> None:
    """`ulimit -f`: there is room on the disk, but this file may not grow. Writers say it in words of their own."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 21, before[1]))
        with pytest.raises(OSError) as refused, atomic_file(tmp_path / "model.safetensors") as temporary:
            temporary.write_bytes(bytes(2 ** 21))
            raise RuntimeError("inline_container.cc: enforce fail")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert refused.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_removed_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:         # pytest's own may not be entered
        root = Path(name)
        (root / "pool").mkdir()
        (root / "pool" / "case.b2nd").write_bytes(b"kept")
        for folder in (root, root / "pool"):
            folder.chmod(0o555)
        with without_privileges(), pytest.raises(UserError, match="case.b2nd cannot be removed .*Permission denied"):
            remove_folder(root / "pool")
        assert (root / "pool" / "case.b2nd").exists()
        root.chmod(0o755)
        remove_folder(root / "pool")
        remove_folder(root / "pool")                    # which is gone
        assert not (root / "pool").exists()
