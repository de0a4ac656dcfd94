"""A conversion that was stopped, however, leaves nothing that looks like a dataset, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import SimpleITK

import nnunet_synth.dataset_conversion.unfinished as unfinished
from nnunet_synth.dataset_conversion.writer import write_dataset
from nnunet_synth.errors import UserError
from tests.dataset_conversion.toy import DESCRIPTION, HIDDEN, HU, LABEL, LAYOUT, case, take_reads

IDS = ["a", "b", "c", "d"]


def cases(root: Path) -> list:
    return [case(root, "a", layout=LAYOUT), case(root, "b", "unlabelled", repairs=("turned",)),
            case(root, "c", "test", metadata={"kernel": "B31f"}), case(root, "d")]


def target(root: Path) -> Path:
    return root / "raw" / "Dataset007_Toy"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A folder in which a conversion was interrupted while it read `c`; `a` and `b` are finished."""
    def interrupt() -> None:
        raise KeyboardInterrupt
    todo = cases(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_dataset([replace(case, read=interrupt) if case.id == "c" else case for case in todo], DESCRIPTION,
                      target(tmp_path))
    assert take_reads(tmp_path) == ["a", "b"]
    assert [path.name for path in target(tmp_path).parent.iterdir()] == [HIDDEN]
    return tmp_path


def go_on(root: Path, **options: object) -> list[str]:
    """Which cases the next run reads; it leaves the dataset and nothing else."""
    write_dataset(cases(root), DESCRIPTION, target(root), **options)
    assert [path.name for path in (root / "raw").iterdir()] == ["Dataset007_Toy"]
    return take_reads(root)


def test_the_same_command_goes_on_and_ends_with_the_same_dataset(stopped, capsys):
    assert go_on(stopped) == ["c", "d"]
    assert "2 of 4 cases were converted before and are kept" in capsys.readouterr().out
    resumed = tree(target(stopped))
    target(stopped).rename(stopped / "elsewhere")
    assert go_on(stopped) == IDS
    assert tree(target(stopped)) == resumed and "conversion_report.json" in resumed


def test_an_interruption_says_what_is_kept(stopped, capsys, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr("nnunet_synth.dataset_conversion.writer.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(cases(stopped), DESCRIPTION, target(stopped))
    assert f"4 finished case(s) are kept in {stopped / 'raw' / HIDDEN}" in capsys.readouterr().err


def start(root: Path, num_jobs: int, **options: object) -> subprocess.Popen:
    """Convert `cases(root)` in a process of its own."""
    program = ("from pathlib import Path\nfrom tests.dataset_conversion import test_unfinished as test\n"
               "from nnunet_synth.dataset_conversion.writer import write_dataset\n"
               f"root = Path({str(root)!r})\n"
               f"write_dataset(test.cases(root), test.DESCRIPTION, test.target(root), num_jobs={num_jobs})\n")
    return subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE,
                            text=True, **options)


def finished(root: Path) -> int:
    return len(list((root / "raw" / HIDDEN / "records").glob("[!.]*")))


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_killed(tmp_path, num_jobs):
    for name in ("c.source", "d.source"):
        (tmp_path / name).write_text("wait")
    child = start(tmp_path, num_jobs)
    wait_until(lambda: finished(tmp_path) == 2 and (tmp_path / "reads.log").read_text().split()[2:])
    with pytest.raises(UserError, match=f"is being written by process {child.pid} on host"):
        write_dataset(cases(tmp_path), DESCRIPTION, target(tmp_path))
    workers = children_of(child.pid)
    assert num_jobs == 1 or len(workers) >= 2
    child.kill()
    child.communicate()
    wait_until(lambda: not any(map(is_running, workers)))               # they would write into the next run's folder
    assert all(path.name.startswith(".") for path in (tmp_path / "raw").iterdir())

    half = tmp_path / "raw" / HIDDEN / "dataset" / "imagesTs" / "c_0000.nii.gz"
    half.parent.mkdir()
    half.write_bytes(b"half")
    for name in ("c.source", "d.source"):
        (tmp_path / name).write_text("ready")
    take_reads(tmp_path)
    assert go_on(tmp_path) == ["c", "d"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in a minute"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_interrupted_in_the_terminal(tmp_path):
    """Ctrl-C reaches the workers too."""
    (tmp_path / "c.source").write_text("wait")
    # A shell's background jobs, as tests may be, ignore SIGINT, and so would their children.
    child = start(tmp_path, num_jobs=2, start_new_session=True,
                  preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    wait_until(lambda: finished(tmp_path) == 3)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode != 0 and "3 finished case(s) are kept" in said
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [HIDDEN]
    (tmp_path / "c.source").write_text("ready")
    take_reads(tmp_path)
    assert go_on(tmp_path) == ["c"]


# -- what is done again ------------------------------------------------------------------------------------------------


def test_another_source_is_read_again(stopped):
    (stopped / "b.source").write_text("other text")
    assert go_on(stopped) == ["b", "c", "d"]


def test_other_options_do_all_again(stopped):
    assert go_on(stopped, options={"task": "lungs"}) == IDS


def test_another_description(stopped):
    write_dataset(cases(stopped), replace(DESCRIPTION, notes=()), target(stopped))
    assert take_reads(stopped) == IDS


def test_another_version(stopped, monkeypatch):
    monkeypatch.setattr(unfinished, "__version__", "99.0")
    assert go_on(stopped) == IDS


def test_another_role_leaves_no_file_of_the_old_one(stopped):
    changed = [replace(case, role="test") if case.id in "ab" else case for case in cases(stopped)]
    write_dataset(changed, DESCRIPTION, target(stopped))
    assert take_reads(stopped) == IDS
    assert sorted(path.name for path in target(stopped).iterdir() if path.is_dir()) == [
        "imagesTr", "imagesTs", "labelsTr", "labelsTs", "layoutsTs"]


def test_a_case_that_the_source_no_longer_has_goes(stopped):
    write_dataset([case for case in cases(stopped) if case.id != "a"], DESCRIPTION, target(stopped))
    assert take_reads(stopped) == ["c", "d"]
    assert not list(target(stopped).rglob("a*.nii.gz"))


@pytest.mark.parametrize("damage", [
    lambda hidden: (hidden / "dataset" / "labelsTr" / "a.nii.gz").unlink(),
    lambda hidden: os.truncate(hidden / "dataset" / "layoutsTr" / "a.nii.gz", 5),
    lambda hidden: os.truncate(hidden / "records" / "a.json", 50),
    lambda hidden: (hidden / "records" / "a.json").unlink(),
])
def test_a_record_counts_only_with_its_files(stopped, damage):
    damage(stopped / "raw" / HIDDEN)
    assert go_on(stopped) == ["a", "c", "d"]


def test_foreign_files_do_not_get_into_the_dataset(stopped):
    hidden = stopped / "raw" / HIDDEN
    for name in ("dataset/imagesTr/x_0000.nii.gz", "dataset/labelsUl/x.nii.gz", "records/.a.1234.json", "scratch/copy"):
        (hidden / name).parent.mkdir(exist_ok=True)
        (hidden / name).write_bytes(b"x")
    go_on(stopped)
    assert not list(target(stopped).rglob("x*")) and not (target(stopped) / "labelsUl").exists()


# -- rejected cases, a full disk ---------------------------------------------------------------------------------------


def test_after_a_rejection_only_the_mended_case_is_read(tmp_path):
    todo = cases(tmp_path)
    bad = [*todo[:3], case(tmp_path, "d", label=LABEL * 7)]
    for _ in range(2):
        with pytest.raises(UserError, match=r"undeclared value.*3 finished case\(s\) are kept"):
            write_dataset(bad, DESCRIPTION, target(tmp_path))
    assert take_reads(tmp_path) == [*IDS, "d"]
    assert go_on(tmp_path) == ["d"]


def test_rejected_cases_can_be_allowed_afterwards(tmp_path):
    bad = [case(tmp_path, "a"), case(tmp_path, "b", label=LABEL * 7)]
    with pytest.raises(UserError):
        write_dataset(bad, DESCRIPTION, target(tmp_path))
    take_reads(tmp_path)
    report = write_dataset(bad, DESCRIPTION, target(tmp_path), allow_rejected=True)
    assert take_reads(tmp_path) == ["b"] and [entry.status for entry in report.cases] == ["written", "rejected"]


def test_a_full_disk_keeps_what_was_finished(tmp_path, monkeypatch):
    write, written = SimpleITK.WriteImage, []

    def write_until_full(image: SimpleITK.Image, path: str, **options: object) -> None:
        written.append(path)
        # On a full disk ITK's NIfTI writer prints to stderr, leaves an empty file and reports success.
        Path(path).write_bytes(b"") if len(written) > 4 else write(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SimpleITK, "WriteImage", write_until_full)
        with pytest.raises(UserError, match=r"cannot be written.*MB are free.*2 finished case\(s\) are kept"):
            write_dataset(cases(tmp_path), DESCRIPTION, target(tmp_path))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [HIDDEN]
    take_reads(tmp_path)
    assert go_on(tmp_path) == ["c", "d"]


def test_check_neither_uses_nor_touches_what_is_unfinished(stopped):
    before = tree(stopped / "raw")
    write_dataset(cases(stopped), DESCRIPTION, target(stopped), check_only=True)
    assert take_reads(stopped) == IDS and tree(stopped / "raw") == before


def test_many_cases_cost_no_more_each(tmp_path):
    """Sources are asked for their stamps, not read, and each is asked once."""
    stamps = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __str__(self) -> str:
            return self.name

        def sha256(self) -> str:
            return "0" * 64

        def stamp(self) -> str:
            stamps.append(self.name)
            return "1"

    todo = [replace(case(tmp_path, f"{number}", image=HU[:1, :2, :2], label=LABEL[:1, :2, :2]),
                    sources=(Counted(f"{number}"),)) for number in range(30)]
    with pytest.raises(UserError, match="undeclared"):
        write_dataset([*todo, case(tmp_path, "bad", label=LABEL * 7)], DESCRIPTION, target(tmp_path))
    assert len(stamps) == 30
    stamps.clear()
    write_dataset(todo, DESCRIPTION, target(tmp_path))
    assert len(stamps) == 30
