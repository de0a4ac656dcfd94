"""Bad input of `nnunet_synth convert`, whatever the dataset: one line, exit status 2, nothing that looks like a
dataset, nothing written anywhere else. Shown with `convert folder`, which reads as all converters of volumes do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.cli import main
from tests.conftest import FOLDERS, set_folders
from tests.privileges import without_privileges

PROGRESS_LINE = re.compile(r".+: \d+(/\d+)?(, \d+ s left)?")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """nnU-Net's folders, an empty TMPDIR, and `source/{scans,labels}` with three cases of 4 × 6 × 5 voxels.

    Not in pytest's own folder, because nobody but root may enter that.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        root.chmod(0o755)
        set_folders(monkeypatch, root)
        for folder in (*FOLDERS, "tmp"):
            (root / folder).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
        rng = np.random.default_rng(0)
        for case_id in ("ann", "bob", "cem"):
            write(rng.integers(-1024, 1500, (4, 6, 5)).astype(np.int16), scan(root, case_id))
            write(rng.integers(0, 2, (4, 6, 5)).astype(np.uint8), label(root, case_id))
        yield root


def scan(root: Path, case_id: str = "bob") -> Path:
    return root / "source" / "scans" / f"{case_id}.nii.gz"


def label(root: Path, case_id: str = "bob") -> Path:
    return root / "source" / "labels" / f"{case_id}.nii.gz"


def write(array: np.ndarray, path: Path, spacing: tuple[float, ...] = (0.7, 0.8, 5.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))


def change(path: Path, edit: Callable[[SimpleITK.Image], SimpleITK.Image | None]) -> None:
    image = SimpleITK.ReadImage(str(path))
    SimpleITK.WriteImage(edit(image) or image, str(path))


def with_voxel(path: Path, value: float) -> None:
    image = SimpleITK.Cast(SimpleITK.ReadImage(str(path)), SimpleITK.sitkFloat32)
    image[1, 2, 3] = value
    SimpleITK.WriteImage(image, str(path))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in folder.rglob("*") if not path.is_dir()}


def convert(root: Path, *more: str) -> int:
    return main(["convert", "folder", str(root / "source" / "scans"), "--labels", str(root / "source" / "labels"),
                 "-d", "530", "--name", "Bad", *more])


def refused(root: Path, capsys: pytest.CaptureFixture, *words: str, run: Callable[[Path], int] = convert) -> str:
    """The one line of a command that exits with 2 and writes nothing but finished cases in a hidden folder."""
    before = snapshot(root)
    status = run(root)
    said = [line for line in capsys.readouterr().err.splitlines() if not PROGRESS_LINE.fullmatch(line)]
    assert status == 2 and len(said) == 1, (status, said)
    assert said[0].startswith("nnunet_synth convert: error: ") and all(word in said[0] for word in words), said[0]
    after = snapshot(root)
    hidden = "nnUNet_raw/.Dataset530_Bad.converting/"
    assert {name: mark for name, mark in after.items() if not name.startswith(hidden)} == before
    assert not list((root / "nnUNet_raw").glob("Dataset*"))
    return said[0]


BAD_CASES = {
    "truncated gzip": (lambda root: os.truncate(scan(root), 150), ["scans/bob.nii.gz is truncated"]),
    "zero bytes": (lambda root: os.truncate(scan(root), 0), ["scans/bob.nii.gz is empty (0 bytes)"]),
    "zero bytes of a label": (lambda root: os.truncate(label(root), 0), ["labels/bob.nii.gz is empty (0 bytes)"]),
    "NaN": (lambda root: with_voxel(scan(root), np.nan), ["scans/bob.nii.gz holds 1 voxels that are NaN or infinite"]),
    "infinity": (lambda root: with_voxel(scan(root), np.inf), ["scans/bob.nii.gz holds 1 voxels that are NaN"]),
    "undeclared label": (lambda root: with_voxel(label(root), 3),
                         ["labels/bob.nii.gz", "without a name, 3: ", "--label-values 3=1"]),
    "fractional label": (lambda root: with_voxel(label(root), 0.5), ["labels/bob.nii.gz", "not integers, e.g. 0.5"]),
    "other shape": (lambda root: change(label(root), lambda image: image[:, :, 1:]),
                    ["label and image differ in shape"]),
    "other spacing": (lambda root: change(label(root), lambda image: image.SetSpacing((0.7, 0.9, 5))),
                      ["label and image differ in spacing"]),
    "other direction": (lambda root: change(label(root), lambda image: image.SetDirection(
        (1, 0, 0, 0, 0.8, -0.6, 0, 0.6, 0.8))), ["label and image differ in direction"]),
    "4-D": (lambda root: change(scan(root), lambda image: SimpleITK.JoinSeries([image, image])),
            ["scans/bob.nii.gz is 4-D of size (5, 6, 4, 2)"]),
    "colours": (lambda root: change(scan(root), lambda image: SimpleITK.Compose([image] * 3)), ["3 values a voxel"]),
}


@pytest.mark.parametrize(("name", "jobs"), [*((name, "1") for name in BAD_CASES), ("NaN", "2")])
def test_a_bad_case_stops_the_conversion_and_is_mended(root, capsys, name, jobs):
    spoil, words = BAD_CASES[name]
    whole = {path: path.read_bytes() for path in (scan(root), label(root))}
    spoil(root)
    error = refused(root, capsys, "labelled case bob was rejected", "2 finished case(s) are kept", *words,
                    run=lambda root: convert(root, "--jobs", jobs))
    assert "--allow-rejected" in error
    for path, content in whole.items():
        path.write_bytes(content)
    assert convert(root) == 0
    assert "2 of 3 cases were converted before" in capsys.readouterr().out
    assert len(list((root / "nnUNet_raw" / "Dataset530_Bad" / "imagesTr").iterdir())) == 3


def add_link(root: Path) -> None:
    (root / "secret.nii.gz").write_bytes(b"mine")
    (root / "source" / "scans" / "dora.nii.gz").symlink_to(root / "secret.nii.gz")


def add_slip(root: Path) -> None:
    with zipfile.ZipFile(root / "source" / "scans" / "more.zip", "w") as archive:
        archive.write(scan(root), "../../../evil.nii.gz")


def add_twice(root: Path) -> None:
    shutil.copy(scan(root), scan(root).parent / "bob.nii")
    (scan(root).parent / "again").mkdir()
    shutil.copy(scan(root), scan(root).parent / "again")


BAD_SOURCES = {
    "link out of SOURCE": (add_link, ["dora.nii.gz is a link out of"]),
    "zip slip": (add_slip, ["more.zip holds a name that leaves it"]),
    "one id twice": (add_twice, ["bob"]),
    "no such folder": (lambda root: shutil.rmtree(root / "source" / "scans"), ["scans does not exist"]),
    "empty folder": (lambda root: [path.unlink() for path in (root / "source" / "scans").iterdir()], ["scans"]),
    "id in use": (lambda root: (root / "nnUNet_results" / "Dataset530_Mine").mkdir(), ["Dataset530_Mine exists"]),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_refused_before_any_case_is_read(root, capsys, name):
    spoil, words = BAD_SOURCES[name]
    spoil(root)
    error = refused(root, capsys, *words)
    assert "kept" not in error and not list((root / "nnUNet_raw").iterdir())


@pytest.mark.parametrize("dataset", ["mosmed", "covid-19-20", "covid19-ct-seg", "nccid", "covid-semiseg"])
def test_the_wrong_dataset_for_the_command(root, capsys, dataset):
    error = refused(root, capsys, run=lambda root: main(["convert", dataset, str(root / "source"), "-d", "530"]))
    assert str(root / "source") in error and not list((root / "nnUNet_raw").iterdir())


@pytest.mark.parametrize("forbidden", ["scans", "scans/bob.nii.gz"])
def test_no_permission_to_read(root, capsys, forbidden):
    assert convert(root, "--check") == 0                    # which imports what only root may import
    (root / "nnUNet_raw").chmod(0o777)
    (root / "tmp").chmod(0o777)
    (root / "source" / forbidden).chmod(0)
    capsys.readouterr()
    before = snapshot(root)
    with without_privileges():
        status = convert(root)
    said = [line for line in capsys.readouterr().err.splitlines() if not PROGRESS_LINE.fullmatch(line)]
    assert status == 2 and len(said) == 1 and f"{forbidden} cannot be read: Permission denied" in said[0], said
    (root / "source" / forbidden).chmod(0o755)
    assert not list((root / "nnUNet_raw").glob("Dataset*"))
    assert before == {name: mark for name, mark in snapshot(root).items() if ".converting/" not in name}


def test_no_permission_to_write(root, capsys):
    assert convert(root, "--check") == 0
    capsys.readouterr()
    with without_privileges():
        refused(root, capsys, "Permission denied")


def test_a_full_disk(root, capsys, monkeypatch):
    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        refused(root, capsys, "No space left on device", "run the same command again")
    assert not list((root / "nnUNet_raw").iterdir())
    assert convert(root) == 0


def test_a_disk_that_is_full_later(root, capsys, monkeypatch):
    """ITK's NIfTI writer says nothing and leaves an empty file."""
    write_image, written = SimpleITK.WriteImage, []

    def write_until_full(image: SimpleITK.Image, path: str, **options: object) -> None:
        written.append(path)
        Path(path).write_bytes(b"") if len(written) > 3 else write_image(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SimpleITK, "WriteImage", write_until_full)
        refused(root, capsys, "cannot be written", "MB are free", "1 finished case(s) are kept")
    assert convert(root) == 0
    assert len(list((root / "nnUNet_raw" / "Dataset530_Bad" / "labelsTr").iterdir())) == 3


def test_good_input_is_only_read(root, capsys):
    archive = root / "packed" / "scans.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        for path in (root / "source" / "scans").iterdir():
            packed.write(path, path.name)
    before = snapshot(root)
    assert main(["convert", "folder", str(archive), "--labels", str(root / "source" / "labels"), "-d", "530"]) == 0
    new = {name for name, mark in snapshot(root).items() if before.get(name) != mark}
    assert new and all(name.startswith("nnUNet_raw/Dataset530_") for name in new)
