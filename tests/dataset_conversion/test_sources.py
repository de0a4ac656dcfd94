"""A download is the same whether it is extracted or not; what could do harm, or cannot be read, is told in one line."""

import hashlib
import io
import os
import pickle
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_synth.dataset_conversion.sources import SourceFile, list_files, scratch_folder
from nnunet_synth.errors import UserError
from tests.privileges import without_privileges

FILES = {"Train/a.nii.gz": b"a" * 3000, "Train/b.nii.gz": bytes(range(256)) * 4000, "notes.txt": b"", "x/y/z.dcm": b"z"}


def write_folder(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def paths(source: Path, under: str = "") -> list[str]:
    return [str(file.path) for file in list_files(source, under)]


def contents(source: Path, under: str = "") -> dict[str, bytes]:
    return {str(file.path): file.read_bytes() for file in list_files(source, under)}


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def refused(source: Path, *words: str) -> None:
    """Nothing is yielded before the refusal, and it is one line."""
    files = list_files(source)
    with pytest.raises(UserError) as caught:
        for file in files:
            pytest.fail(f"{file} was yielded before the refusal")
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def unreadable(file: SourceFile, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        file.read_bytes()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in (file.path.name, *words))


# -- one download in many shapes ---------------------------------------------------------------------------------------


ONE_ARCHIVE = {"zip": lambda root: write_zip(root / "data.zip"),
               "stored zip": lambda root: write_zip(root / "data.zip", method=zipfile.ZIP_STORED),
               "lzma zip": lambda root: write_zip(root / "data.zip", method=zipfile.ZIP_LZMA),
               "capitals": lambda root: write_zip(root / "data.ZIP"),
               "tar": lambda root: write_tar(root / "data.tar"),
               "tar of ./": lambda root: write_tar(root / "data.tar", {f"./{name}": text for name, text in
                                                                      FILES.items()}),
               "zip of Windows": lambda root: write_zip(root / "data.zip", {name.replace("/", "\\"): text for name, text
                                                                            in FILES.items()})}


@pytest.mark.parametrize("shape", ONE_ARCHIVE)
def test_one_archive_is_what_it_is_extracted(tmp_path, shape):
    archive = ONE_ARCHIVE[shape](tmp_path / "in")
    assert contents(archive) == contents(write_folder(tmp_path / "extracted")) == FILES
    assert contents(archive.parent) == {f"data/{name}": content for name, content in FILES.items()}


def test_archives_in_folders_look_as_if_extracted_beside_themselves(tmp_path):
    write_zip(tmp_path / "deep" / "Lung_Mask.zip", {"1.nii.gz": b"lung"})
    write_tar(tmp_path / "deep" / "Infection_Mask.tar", {"1.nii.gz": b"infection"})
    write_folder(tmp_path, {"deep/read.me": b"", "1.nii.gz": b"image"})
    assert contents(tmp_path) == {"1.nii.gz": b"image", "deep/read.me": b"",
                                  "deep/Infection_Mask/1.nii.gz": b"infection", "deep/Lung_Mask/1.nii.gz": b"lung"}
    assert paths(tmp_path, under="deep/Lung_Mask") == ["deep/Lung_Mask/1.nii.gz"]
    assert paths(tmp_path, under="deep") == ["deep/read.me", "deep/Infection_Mask/1.nii.gz", "deep/Lung_Mask/1.nii.gz"]


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".7z"])
def test_an_archive_beside_its_extracted_folder_is_not_read_again(tmp_path, ending):
    write_folder(tmp_path / "mosmed", {"a.txt": b"extracted"})
    (tmp_path / f"MosMed{ending}").write_bytes(b"not even an archive")
    assert contents(tmp_path) == {"mosmed/a.txt": b"extracted"}


def test_what_lies_elsewhere_is_not_opened(tmp_path):
    write_folder(tmp_path, {"ct/a.dcm": b"", "xray.zip": b"broken", "mri.7z": b""})
    assert paths(tmp_path, under="ct") == ["ct/a.dcm"]


def test_hidden_files_and_those_of_macos_are_left_out(tmp_path):
    names = ["a.nii.gz", ".DS_Store", "._a.nii.gz", "__MACOSX/._a.nii.gz", "__MACOSX/a.nii.gz", "x/.git/config"]
    files = dict.fromkeys(names, b"")
    assert paths(write_zip(tmp_path / "a.zip", files)) == ["a.nii.gz"]
    assert paths(write_folder(tmp_path / "a", files)) == ["a.nii.gz"]


def test_a_nifti_is_no_archive_and_a_folder_may_be_called_as_one(tmp_path):
    write_folder(tmp_path, {"a.nii.gz": b"a", "odd.zip/b.nii.gz": b"b"})
    assert contents(tmp_path) == {"a.nii.gz": b"a", "odd.zip/b.nii.gz": b"b"}


def test_large_zips_have_another_format(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        with archive.open("Train/a.nii.gz", "w", force_zip64=True) as member:
            member.write(b"zip64")
    assert contents(tmp_path / "a.zip") == {"Train/a.nii.gz": b"zip64"}


def test_what_is_no_file_is_left_out(tmp_path):
    write_folder(tmp_path, {"a.txt": b""})
    os.mkfifo(tmp_path / "pipe")                        # reading it would wait for ever
    assert paths(tmp_path) == ["a.txt"]


def test_a_link_inside_is_followed_to_files_only(tmp_path):
    write_folder(tmp_path / "data", {"real/a.txt": b"a"})
    (tmp_path / "data" / "again").symlink_to("real")
    (tmp_path / "data" / "b.txt").symlink_to("real/a.txt")
    (tmp_path / "data" / "real" / "up").symlink_to("..")                # a loop, if it were followed
    (tmp_path / "link").symlink_to("data")
    assert contents(tmp_path / "link") == contents(tmp_path / "data") == {"b.txt": b"a", "real/a.txt": b"a"}


# -- one file ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "zip", "tar"])
def download(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return {"folder": lambda: write_folder(tmp_path / "in"), "zip": lambda: write_zip(tmp_path / "in.zip"),
            "tar": lambda: write_tar(tmp_path / "in.tar")}[request.param]()


def test_every_way_to_read_a_file(download):
    for file in pickle.loads(pickle.dumps(list(list_files(download)))):         # as a worker process gets it
        expected = FILES[str(file.path)]
        with file.open() as stream:
            assert stream.read(5) == expected[:5]
            stream.seek(1)                              # pydicom and Pillow go back
            assert stream.read(3) == expected[1:4]
        with file.on_disk() as path:
            assert path.read_bytes() == expected and path.name == file.path.name
        assert file.sha256() == hashlib.sha256(expected).hexdigest()
        assert str(file).startswith(str(download)) and str(file).endswith(file.name)


def test_two_members_at_once(download):
    a, b = (file for file in list_files(download) if file.path.suffix == ".gz")
    with a.open() as first, b.open() as second:
        parts = [(first.read(10), second.read(10)) for _ in range(3)]
    assert parts == [(FILES["Train/a.nii.gz"][at:at + 10], FILES["Train/b.nii.gz"][at:at + 10]) for at in (0, 10, 20)]


def test_a_stamp_changes_with_the_file(download):
    file = list(list_files(download))[-1]
    before = file.stamp()
    assert file.stamp() == before
    changed = download / file.name if download.is_dir() else download
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert file.stamp() != before
    changed.unlink()
    assert file.stamp() == "missing"


def test_an_archive_that_was_replaced_is_opened_anew(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"1.txt": b"old"})
    assert contents(archive) == {"1.txt": b"old"}
    write_zip(archive, {"1.txt": b"the new one"})
    assert contents(archive) == {"1.txt": b"the new one"}


def test_nothing_is_left_where_it_is_read(download, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    for folder in (scratch, tmp_path / "tmp"):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = snapshot(tmp_path)
    with scratch_folder(scratch):
        for file in list_files(download):
            with file.on_disk() as path:
                assert path.is_relative_to(scratch if file.is_in_archive else download)
    with pytest.raises(ZeroDivisionError), file.on_disk() as path:
        assert path.is_relative_to(tmp_path / "tmp" if file.is_in_archive else download)
        raise ZeroDivisionError
    after = snapshot(tmp_path)
    assert set(after) == set(before)
    assert all(after[name] == before[name] for name in before if Path(name) not in (scratch, tmp_path / "tmp"))


@pytest.mark.parametrize("error", [KeyError("StudyInstanceUID"), OSError(28, "No space left"), RuntimeError("mine")])
def test_what_goes_wrong_with_the_bytes_is_not_blamed_on_the_file(download, error):
    file = next(list_files(download))
    with pytest.raises(type(error)) as caught, file.open():
        raise error
    assert caught.value is error


# -- what could do harm ------------------------------------------------------------------------------------------------


def zip_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"")
        link = zipfile.ZipInfo("passwords")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return path


def tar_member(kind: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path = write_tar(path.with_suffix(".tar"), {"a.txt": b""})
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo("odd")
            member.type, member.linkname = kind, "a.txt"
            archive.addfile(member)
        return path
    return write


HARM = {
    "zip slip": (lambda path: write_zip(path, {"a.txt": b"", "../evil": b""}), "leaves it"),
    "zip slip further in": (lambda path: write_zip(path, {"a/../../evil": b""}), "leaves it"),
    "zip slip of Windows": (lambda path: write_zip(path, {"a\\..\\..\\evil": b""}), "leaves it"),
    "hidden zip slip": (lambda path: write_zip(path, {"../.evil": b""}), "leaves it"),
    "absolute": (lambda path: write_zip(path, {"/etc/evil": b""}), "leaves it"),
    "absolute of Windows": (lambda path: write_zip(path, {"\\evil": b""}), "leaves it"),
    "drive": (lambda path: write_zip(path, {"C:\\evil": b""}), "leaves it"),
    "drive without a slash": (lambda path: write_zip(path, {"c:evil": b""}), "leaves it"),
    "link": (zip_link, "link"),
    "tar slip": (lambda path: write_tar(path.with_suffix(".tar"), {"a.txt": b"", "../evil": b""}), "leaves it"),
    "tar absolute": (lambda path: write_tar(path.with_suffix(".tar"), {"/etc/evil": b""}), "leaves it"),
    "tar link": (tar_member(tarfile.SYMTYPE), "link"),
    "tar hard link": (tar_member(tarfile.LNKTYPE), "link"),
    "tar device": (tar_member(tarfile.CHRTYPE), "device"),
    "tar pipe": (tar_member(tarfile.FIFOTYPE), "device"),
}


@pytest.mark.parametrize("name", HARM)
def test_harmful_archives_are_refused_and_nothing_is_written(tmp_path, name, monkeypatch):
    write, reason = HARM[name]
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "in").mkdir()
    archive = write(tmp_path / "in" / "a.zip")
    before = snapshot(tmp_path)
    refused(archive, archive.name, reason)
    refused(archive.parent, archive.name, reason)
    assert snapshot(tmp_path) == before


def test_links_out_of_the_source_are_refused(tmp_path):
    secret = write_folder(tmp_path / "secret", {"a.txt": b"mine"})
    for number, target in enumerate((secret / "a.txt", secret, Path("../secret/a.txt"), Path("/etc/passwd"))):
        source = tmp_path / str(number)
        source.mkdir()
        (source / "link").symlink_to(target)
        refused(source, "link", f"out of {source}")


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_links_to_nowhere_are_refused(tmp_path, target):
    (tmp_path / "link").symlink_to(target)              # as git-annex leaves what was not fetched; or itself
    refused(tmp_path, "link", "nowhere")


# -- what cannot be read -----------------------------------------------------------------------------------------------


def encrypted(path: Path) -> Path:
    write_zip(path, {"a.txt": b"secret"})
    return flag(path, 6, 8, b"\x01\x00")


def flag(path: Path, local: int, central: int, value: bytes) -> Path:
    """Overwrite two bytes of both headers of the first member (zip specification 4.3.7, 4.3.12)."""
    content = bytearray(path.read_bytes())
    for start, offset in ((content.index(b"PK\x03\x04"), local), (content.index(b"PK\x01\x02"), central)):
        content[start + offset:start + offset + 2] = value
    path.write_bytes(content)
    return path


def twice(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"1")
        archive.writestr("a.txt", b"2")
    return path


def cut(path: Path, size: int) -> Path:
    os.truncate(path, size)
    return path


UNUSABLE = {
    "truncated zip": (lambda path: cut(write_zip(path), 2000), ["truncated or no archive"]),
    "empty zip": (lambda path: cut(write_zip(path), 0), ["truncated or no archive"]),
    "truncated tar": (lambda path: cut(write_tar(path.with_suffix(".tar")), 5000), ["truncated or no archive"]),
    "empty tar": (lambda path: cut(write_tar(path.with_suffix(".tar")), 0), ["truncated or no archive"]),
    "web page": (lambda path: write_folder(path.parent, {"a.zip": b"<html>"}) / "a.zip", ["truncated or no archive"]),
    "encrypted": (encrypted, ["encrypted", "extract it yourself"]),
    "deflate64": (lambda path: flag(write_zip(path), 8, 10, b"\x09\x00"), ["method", "9", "extract it yourself"]),
    "one name twice": (twice, ["a.txt twice"]),
    "one name twice after all": (lambda path: write_zip(path, {"x/a.txt": b"", "x\\a.txt": b""}), ["x/a.txt twice"]),
    "archive in an archive": (lambda path: write_zip(path, {"Lung_Mask.zip": b""}), ["Lung_Mask.zip", "outer"]),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_archives_that_cannot_be_used(tmp_path, name):
    write, words = UNUSABLE[name]
    refused(write(tmp_path / "a.zip"), "a.", *words)


def test_aes_is_encryption(tmp_path):
    archive = flag(write_zip(tmp_path / "a.zip", {"a.txt": b"secret"}), 8, 10, b"\x63\x00")     # method 99
    refused(archive, "method", "99")
    refused(flag(archive, 6, 8, b"\x01\x00"), "encrypted")


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".7z", ".rar"])
def test_archives_that_would_have_to_be_unpacked(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"")
    refused(tmp_path, f"a{ending}", "extract this archive first")
    refused(tmp_path / f"a{ending}", "extract it and give the folder")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member(tmp_path, method):
    content = os.urandom(20_000)
    archive = write_zip(tmp_path / "a.zip", {"a.bin": content, "b.bin": b"whole"}, method)
    damaged = bytearray(archive.read_bytes())
    damaged[9_000:9_100] = bytes(100)
    archive.write_bytes(damaged)
    bad, good = list_files(archive)
    unreadable(bad, "truncated or corrupt")
    with pytest.raises(UserError, match="a.bin is truncated or corrupt"), bad.on_disk():
        pytest.fail("lent half a file")
    with pytest.raises(UserError, match="a.bin is truncated or corrupt"):
        bad.sha256()
    assert good.read_bytes() == b"whole"


def test_missing_files(tmp_path):
    for file in (SourceFile(tmp_path, "x.txt"), SourceFile(write_zip(tmp_path / "a.zip"), "x.txt"),
                 SourceFile(write_tar(tmp_path / "a.tar"), "x.txt")):
        unreadable(file, "does not exist")
    refused(tmp_path / "nothing", "does not exist")
    (tmp_path / "a.txt").touch()
    refused(tmp_path / "a.txt", "neither a folder nor an archive")


@pytest.fixture
def public_folder():
    """Unlike `tmp_path`, everybody may enter it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_no_permission(public_folder):
    write_folder(public_folder, {"folder/a.txt": b"", "file/a.txt": b""})
    write_zip(public_folder / "zip" / "a.zip")
    for forbidden in ("folder", "file/a.txt", "zip/a.zip"):
        os.chmod(public_folder / forbidden, 0)
    with without_privileges():
        refused(public_folder / "folder", "folder cannot be read: Permission denied")
        refused(public_folder / "folder" / "inside", "cannot be read: Permission denied")
        refused(public_folder / "zip", "a.zip cannot be read: Permission denied")
        file, = list_files(public_folder / "file")
        unreadable(file, "cannot be read: Permission denied")
    os.chmod(public_folder / "folder", 0o755)


def test_a_name_that_is_no_text_is_not_lent_to_a_reader(tmp_path):
    """SimpleITK would end the process."""
    for file in (SourceFile(tmp_path, "a_\udcff.dcm"), SourceFile(write_zip(tmp_path / "a.zip"), "a_\udcff.dcm")):
        with pytest.raises(UserError, match="name that is no UTF-8 text"), file.on_disk():
            pytest.fail("lent it")
