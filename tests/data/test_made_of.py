"""A source that was replaced is noticed whatever its time, and one that only looks newer is not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nnunet_synth.data import made_of
from nnunet_synth.data.made_of import is_made_of, read_note, stamps, write_note
from nnunet_synth.errors import UserError

LONG_AGO = (10 ** 18, 10 ** 18)     # ns


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "imagesUl").mkdir()
    file = tmp_path / "imagesUl" / "a_0000.nii.gz"
    file.write_bytes(b"voxels")
    write_note(tmp_path / "a.json", stamps([file]), shape=[1, 2])
    return file


def test_what_is_noted(source: Path, tmp_path: Path) -> None:
    sha256 = "38d11342e7802dc460247dcec95b945557f05a1bcc74a4db37f42d7e2b8b43de"
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "sources": {"imagesUl/a_0000.nii.gz": [6, source.stat().st_mtime_ns, sha256]}, "shape": [1, 2]}
    assert is_made_of(tmp_path / "a.json", [source])


@pytest.mark.parametrize("content", [b"VOXELS", b"other voxels"], ids=["same size", "other size"])
def test_a_copy_with_an_older_time_is_another_source(source: Path, tmp_path: Path, content: bytes) -> None:
    source.write_bytes(content)
    os.utime(source, ns=LONG_AGO)
    assert not is_made_of(tmp_path / "a.json", [source])


@pytest.mark.parametrize("time", [LONG_AGO, (3 * 10 ** 18, 3 * 10 ** 18)], ids=["older", "newer"])
def test_the_same_content_with_another_time_is_the_same_and_hashed_once(
        source: Path, tmp_path: Path, time: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(source, ns=time)
    assert is_made_of(tmp_path / "a.json", [source])
    assert read_note(tmp_path / "a.json")["shape"] == [1, 2]
    monkeypatch.setattr(made_of, "_sha256", None)
    assert is_made_of(tmp_path / "a.json", [source])


def test_up_to_date_is_seen_without_reading(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_of, "_sha256", None)
    assert is_made_of(tmp_path / "a.json", [source])


def test_other_sources(source: Path, tmp_path: Path) -> None:
    second = source.with_name("a_0001.nii.gz")
    second.write_bytes(b"voxels")
    assert not is_made_of(tmp_path / "a.json", [source, second]) and not is_made_of(tmp_path / "a.json", [])
    assert not is_made_of(tmp_path / "b.json", [source])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"sources": []}', '{"sources": {"a": 3}}',
                                  '{"sources": {"imagesUl/a_0000.nii.gz": [6]}}', "\x00"])
def test_a_damaged_note_is_none(source: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_note(tmp_path / "a.json") is None and not is_made_of(tmp_path / "a.json", [source])


def test_a_source_that_is_gone(source: Path, tmp_path: Path) -> None:
    source.unlink()
    with pytest.raises(UserError, match="a_0000.nii.gz cannot be read: No such file"):
        is_made_of(tmp_path / "a.json", [source])
    with pytest.raises(UserError, match="cannot be read"):
        stamps([source])
