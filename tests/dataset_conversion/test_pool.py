"""`--add-to-pool`: all scans of a source or none join imagesUl of an existing dataset, and nothing else changes."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion.case import CaseContent
from nnunet_synth.dataset_conversion.pool import add_to_pool
from nnunet_synth.dataset_conversion.writer import write_dataset
from nnunet_synth.errors import UserError
from nnunet_synth.lock import only_writer
from tests.dataset_conversion.toy import DESCRIPTION, HU, LABEL, LAYOUT, case, hu, take_reads, volume

UPRIGHT = {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}        # LPS, as converters write


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with one labelled, one unlabelled and one test case."""
    folder = tmp_path / "raw" / "Dataset007_Toy"
    write_dataset([replace(case(tmp_path, "a"), read=lying_upright), case(tmp_path, "u", "unlabelled"),
                   case(tmp_path, "t", "test")], DESCRIPTION, folder)
    take_reads(tmp_path)
    return folder


def lying_upright():
    return CaseContent((volume(hu("a"), **UPRIGHT),), volume(LABEL, **UPRIGHT))


def new_cases(root: Path) -> list:
    return [case(root, "new1", layout=LAYOUT), case(root, "new2", "unlabelled", metadata={"kernel": "soft"}),
            case(root, "new3", "test", label=LABEL)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_all_roles_join_the_pool_without_labels(dataset, tmp_path):
    before = tree(dataset)
    report = add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy", options={"type": "toy"})
    after = tree(dataset)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "imagesUl/new1_0000.nii.gz", "imagesUl/new2_0000.nii.gz", "imagesUl/new3_0000.nii.gz", "layoutsUl/new1.nii.gz",
        "conversion_report_toy.json", "metadata_toy.csv"}
    image = SimpleITK.ReadImage(str(dataset / "imagesUl" / "new1_0000.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), hu("new1"))
    stored = json.loads((dataset / "conversion_report_toy.json").read_text())
    assert [(entry["id"], entry["role"], entry["has_label"]) for entry in stored["cases"]] == [
        (f"new{number}", "unlabelled", False) for number in (1, 2, 3)]
    assert stored["counts"]["unlabelled"] == {"written": 3} and stored["options"] == {"type": "toy"}
    assert len(report.usable) == 3 and report.folder == dataset
    with open(dataset / "metadata_toy.csv", newline="") as file:
        assert [row["kernel"] for row in csv.DictReader(file)] == ["", "soft", ""]
    assert [path.name for path in dataset.parent.iterdir()] == ["Dataset007_Toy"]


def test_every_addition_has_its_report(dataset, tmp_path):
    add_to_pool([case(tmp_path, "n1")], DESCRIPTION, dataset, "toy")
    add_to_pool([case(tmp_path, "n2")], DESCRIPTION, dataset, "toy")
    add_to_pool([case(tmp_path, "n3")], DESCRIPTION, dataset, "nccid")
    reports = {path.name: [entry["id"] for entry in json.loads(path.read_text())["cases"]]
               for path in dataset.glob("conversion_report_*")}
    assert reports == {"conversion_report_toy.json": ["n1"], "conversion_report_toy_2.json": ["n2"],
                       "conversion_report_nccid.json": ["n3"]}


def test_a_source_that_has_grown_adds_what_is_new(dataset, tmp_path):
    add_to_pool(new_cases(tmp_path)[:2], DESCRIPTION, dataset, "toy")
    before = tree(dataset)
    assert take_reads(tmp_path) == ["new1", "new2"]
    report = add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy")
    after = tree(dataset)
    assert take_reads(tmp_path) == ["new3"] and [case.id for case in report.cases] == ["new3"]
    assert report.notes[-1] == "2 scan(s) were added before and stay as they are"
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"imagesUl/new3_0000.nii.gz", "conversion_report_toy_2.json",
                                        "metadata_toy_2.csv"}
    with pytest.raises(UserError, match="all 3 scans are in Dataset007_Toy already"):
        add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy")

    (dataset / "imagesUl" / "new2_0000.nii.gz").unlink()                # somebody wants it made again
    add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy")
    assert take_reads(tmp_path) == ["new2"]


@pytest.mark.parametrize("source_type, root", [("toy", "elsewhere"), ("other", ".")])
def test_another_scan_of_the_same_name_is_no_scan_that_was_added_before(dataset, tmp_path, source_type, root):
    add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy")
    (tmp_path / root).mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"3 case\(s\) are in Dataset007_Toy already, e\.g\. new1 in imagesUl"):
        add_to_pool(new_cases(tmp_path / root), DESCRIPTION, dataset, source_type)


def test_the_pool_need_not_exist(dataset, tmp_path):
    (dataset / "imagesUl" / "u_0000.nii.gz").unlink()
    (dataset / "imagesUl").rmdir()
    add_to_pool([case(tmp_path, "n")], DESCRIPTION, dataset, "toy")
    assert [path.name for path in (dataset / "imagesUl").iterdir()] == ["n_0000.nii.gz"]


@pytest.mark.parametrize(("case_id", "where"), [("a", "imagesTr"), ("t", "imagesTs"), ("u", "imagesUl")])
@pytest.mark.parametrize("check_only", [False, True])
def test_an_id_that_is_there_is_refused_before_anything_is_read(dataset, tmp_path, case_id, where, check_only):
    before = tree(dataset)
    with pytest.raises(UserError, match=rf"1 case\(s\) are in Dataset007_Toy already, e\.g\. {case_id} in {where}"):
        add_to_pool([*new_cases(tmp_path), case(tmp_path, case_id)], DESCRIPTION, dataset, "toy", check_only=check_only)
    assert tree(dataset) == before and take_reads(tmp_path) == []


@pytest.mark.parametrize(("change", "message"), [
    ({"channel_names": ("T1",)}, r"channels is \['CT'\], theirs is \['T1'\]"),
    ({"channel_names": ("CT", "PET")}, "channels"), ({"file_ending": ".nrrd"}, "file ending is .nii.gz"),
    ({"orientation": "LP"}, "orientation")])
def test_scans_that_do_not_fit_are_refused(dataset, tmp_path, change, message):
    before = tree(dataset)
    with pytest.raises(UserError, match=message):
        add_to_pool(new_cases(tmp_path), replace(DESCRIPTION, **change), dataset, "toy")
    assert tree(dataset) == before and take_reads(tmp_path) == []


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="dataset.json does not exist: give the id of an existing raw dataset"):
        add_to_pool(new_cases(tmp_path), DESCRIPTION, tmp_path / "raw" / "Dataset008_Other", "toy")
    assert not (tmp_path / "raw").exists()


def test_layouts_of_other_anatomy_are_left_out_and_that_is_said(dataset, tmp_path):
    other = replace(DESCRIPTION, layout_labels={"lung": 1, "heart": 2})
    report = add_to_pool(new_cases(tmp_path), other, dataset, "toy")
    assert not (dataset / "layoutsUl").exists() and not any(entry.has_layout for entry in report.cases)
    note = report.notes[-1]
    assert "layouts of the new scans are left out" in note and "left_lung" in note and "heart" in note
    assert note in json.loads((dataset / "conversion_report_toy.json").read_text())["notes"]


def test_arrays_that_lie_otherwise_are_told(tmp_path):
    folder = tmp_path / "raw" / "Dataset007_Toy"
    write_dataset([case(tmp_path, "a")], DESCRIPTION, folder)           # its y and z axes are turned
    report = add_to_pool([case(tmp_path, "n")], DESCRIPTION, folder, "toy")
    assert "the new arrays lie in LPS, a of Dataset007_Toy lies in LAI" in report.notes[-1]


def test_arrays_that_lie_alike_are_not_told(dataset, tmp_path):
    assert add_to_pool([case(tmp_path, "n")], DESCRIPTION, dataset, "toy").notes == DESCRIPTION.notes


def test_scans_that_cannot_be_used_are_left_out_and_reported(dataset, tmp_path):
    bad = case(tmp_path, "bad", image=np.full(HU.shape, np.nan))
    report = add_to_pool([*new_cases(tmp_path), bad], DESCRIPTION, dataset, "toy")
    assert [entry.id for entry in report.rejected] == ["bad"] and "NaN" in report.rejected[0].reason
    assert not list((dataset / "imagesUl").glob("bad*"))


@pytest.mark.parametrize("check_only", [False, True])
def test_a_labelled_or_test_case_under_another_name_is_rejected(dataset, tmp_path, check_only):
    """Its type, its place in space and its name may differ: the voxels are the same."""
    renamed = case(tmp_path, "renamed", image=hu("a").astype(np.float32), origin=(9.0, 9.0, 9.0))
    before = tree(dataset)
    report = add_to_pool([*new_cases(tmp_path), renamed, case(tmp_path, "again", image=hu("t")),
                          case(tmp_path, "other", image=hu("a")[:, ::-1])], DESCRIPTION, dataset, "toy",
                         check_only=check_only)
    reasons = {entry.id: entry.reason for entry in report.rejected}
    assert reasons == {"renamed": "holds the same voxels as imagesTr/a of the dataset: it would leak into the "
                                  "unlabelled scans",
                       "again": "holds the same voxels as imagesTs/t of the dataset: it would leak into the unlabelled "
                                "scans"}
    assert not list((dataset / "imagesUl").glob("renamed*")) and len(report.usable) == 4
    if check_only:
        assert tree(dataset) == before


def test_what_a_planned_dataset_shows_is_read_once(dataset, tmp_path, monkeypatch):
    preprocessed = tmp_path / "preprocessed" / dataset.name
    preprocessed.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    add_to_pool([case(tmp_path, "n1")], DESCRIPTION, dataset, "toy")
    assert sorted(path.name for path in preprocessed.rglob("*.json")) == ["a.json", "t.json"]
    monkeypatch.setattr("nnunet_synth.data.pool_copies.read_image", None)
    report = add_to_pool([case(tmp_path, "n2"), case(tmp_path, "n3", image=hu("a"))], DESCRIPTION, dataset, "toy")
    assert [entry.id for entry in report.rejected] == ["n3"]


def test_nothing_that_can_be_used(dataset, tmp_path):
    before = tree(dataset)
    with pytest.raises(UserError, match="none of 1 scans can be used, e.g. bad: .*NaN"):
        add_to_pool([case(tmp_path, "bad", image=np.full(HU.shape, np.nan))], DESCRIPTION, dataset, "toy")
    assert tree(dataset) == before and not list(dataset.glob(".*"))


def test_check_writes_nothing(dataset, tmp_path):
    before = tree(dataset.parent)
    report = add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy", check_only=True)
    assert tree(dataset.parent) == before and len(report.usable) == 3 and report.folder is None


def test_one_writer_at_a_time(dataset, tmp_path):
    with only_writer(dataset), pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on host"):
        add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy")


# -- stopped -----------------------------------------------------------------------------------------------------------


def test_stopped_while_converting(dataset, tmp_path):
    def interrupt():
        raise KeyboardInterrupt
    before = tree(dataset)
    todo = new_cases(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        add_to_pool([*todo[:2], replace(todo[2], read=interrupt)], DESCRIPTION, dataset, "toy")
    left = tree(dataset)
    assert {name for name in left if not name.startswith(".adding_toy/")} == set(before)
    assert take_reads(tmp_path) == ["new1", "new2"]
    add_to_pool(todo, DESCRIPTION, dataset, "toy")
    assert take_reads(tmp_path) == ["new3"] and len(list((dataset / "imagesUl").iterdir())) == 4
    assert not list(dataset.glob(".*"))


@pytest.fixture
def half_moved(dataset, tmp_path, monkeypatch) -> Path:
    """A dataset whose addition was killed after two files were moved."""
    replace_file, moved = Path.replace, []

    def move_two(path: Path, target: Path) -> Path:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target.name)
        return replace_file(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", move_two)
        add_to_pool(new_cases(tmp_path), DESCRIPTION, dataset, "toy")
    assert moved == ["new1.nii.gz", "new1_0000.nii.gz"]                 # the layout before its image
    assert not (dataset / "conversion_report_toy.json").exists()
    take_reads(tmp_path)
    return dataset


def test_killed_while_moving(half_moved, tmp_path):
    report = add_to_pool(new_cases(tmp_path), DESCRIPTION, half_moved, "toy")
    assert take_reads(tmp_path) == [] and len(report.usable) == 3
    assert sorted(path.name for path in (half_moved / "imagesUl").iterdir()) == [
        "new1_0000.nii.gz", "new2_0000.nii.gz", "new3_0000.nii.gz", "u_0000.nii.gz"]
    assert (half_moved / "conversion_report_toy.json").exists() and not list(half_moved.glob(".*"))


def test_killed_while_moving_and_followed_by_another_command(half_moved, tmp_path):
    add_to_pool([case(tmp_path, "other")], DESCRIPTION, half_moved, "toy", options={"task": "other"})
    assert len(list((half_moved / "imagesUl").iterdir())) == 5
    assert sorted(path.name for path in half_moved.glob("conversion_report_*")) == [
        "conversion_report_toy.json", "conversion_report_toy_2.json"]
