import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion.case import Case, CaseContent
from nnunet_synth.dataset_conversion.writer import write_dataset
from nnunet_synth.errors import UserError
from tests.dataset_conversion.toy import DESCRIPTION, HIDDEN, HU, LABEL, LAYOUT, case, hu, take_reads, volume


def read(file: Path) -> SimpleITK.Image:
    return SimpleITK.ReadImage(str(file))


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_everything_is_written_and_read_back(tmp_path, num_jobs):
    cases = [case(tmp_path, "a", layout=LAYOUT), case(tmp_path, "u", "unlabelled", layout=LAYOUT, repairs=("turned",)),
             case(tmp_path, "t", "test"), case(tmp_path, "s", "test", label=LABEL)]
    target = tmp_path / "raw" / "Dataset007_Toy"
    report = write_dataset(iter(cases), DESCRIPTION, target, num_jobs=num_jobs)

    written = {str(file.relative_to(target)) for file in target.rglob("*.nii.gz")}
    assert written == {"imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "layoutsTr/a.nii.gz", "imagesUl/u_0000.nii.gz",
                       "layoutsUl/u.nii.gz", "imagesTs/t_0000.nii.gz", "imagesTs/s_0000.nii.gz", "labelsTs/s.nii.gz"}
    for name, expected in (("imagesTr/a_0000", hu("a")), ("labelsTr/a", LABEL), ("layoutsUl/u", LAYOUT)):
        image = read(target / f"{name}.nii.gz")
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), expected)
        np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.8, 5.0), rtol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), (1, 2, 3), rtol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), (1, 0, 0, 0, -1, 0, 0, 0, -1), atol=1e-6)

    description = json.loads((target / "dataset.json").read_text())
    assert description["citation"] == "A. Author, Toys, 2020"           # nnU-Net's own writer stores the release here
    assert description["licence"] == description["nnunet_synth"]["licence"] == "CC0"
    assert description["channel_names"] == {"0": "CT"} and description["numTraining"] == 1
    assert description["labels"] == {"background": 0, "lesion": 1} and description["file_ending"] == ".nii.gz"
    assert description["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert description["nnunet_synth"]["layout_labels"] == {"left_lung": 1, "right_lung": 2}

    stored = json.loads((target / "conversion_report.json").read_text())
    assert [entry["id"] for entry in stored["cases"]] == ["a", "u", "t", "s"]
    entry = stored["cases"][1]
    assert entry["status"] == "repaired" and entry["repairs"] == ["turned"] and entry["group"] == "patient"
    assert entry["sources"] == {str(tmp_path / "u.source"): hashlib.sha256(b"u").hexdigest()}
    assert entry["shape"] == [3, 8, 9] and entry["spacing"] == pytest.approx([5.0, 0.8, 0.7])
    assert stored["counts"]["test"] == {"written": 2}
    assert stored["cases"][0]["label_counts"]["1"] == int(LABEL.sum())
    assert report.folder == target and "repaired: 1 x turned" in report.table()
    assert not [path for path in target.parent.iterdir() if path != target]


DEFECTS = {
    "NaN": (dict(image=np.where(LABEL, np.nan, HU).astype(np.float32)), "NaN or infinite"),
    "infinity": (dict(image=np.where(LABEL, -np.inf, HU).astype(np.float32)), "NaN or infinite"),
    "undeclared label": (dict(label=LABEL * 3), r"undeclared value\(s\) \[3\]"),
    "fractional label": (dict(label=LABEL * np.float32(0.5)), r"undeclared value\(s\) \[0.5\]"),
    "no label": (dict(label=None), "no label"),
    "other shape": (dict(label=LABEL[:, :, :-1]), "differ in shape"),
    "other spacing": (dict(spacing=(0.7, 0.7, 5.0)), "differ in spacing"),
    "other origin": (dict(origin=(1.0, 2.0, 13.0)), "differ in origin"),
    "other direction": (dict(direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)), "differ in direction"),
    "undeclared layout": (dict(layout=LAYOUT * 4), r"layout holds undeclared"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_labelled_case_with_a_defect_stops_the_conversion_and_leaves_nothing(tmp_path, defect):
    options, reason = DEFECTS[defect]
    cases = [case(tmp_path, "good"), case(tmp_path, "bad", **options)]
    target = tmp_path / "raw" / "Dataset007_Toy"
    with pytest.raises(UserError, match=reason) as caught:
        write_dataset(cases, DESCRIPTION, target)
    assert "bad" in str(caught.value) and "\n" not in str(caught.value)
    assert "1 finished case(s) are kept" in str(caught.value)
    assert [path.name for path in target.parent.iterdir()] == [HIDDEN]

    checked = write_dataset(cases, DESCRIPTION, target, check_only=True)
    assert [entry.id for entry in checked.rejected] == ["bad"] and not target.exists()

    report = write_dataset(cases, DESCRIPTION, target, allow_rejected=True)
    assert [entry.id for entry in report.rejected] == ["bad"] and "rejected: labelled bad" in report.table()
    assert [file.name for file in (target / "imagesTr").iterdir()] == ["good_0000.nii.gz"]
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 1


def test_a_2d_case_has_no_place_in_a_3d_dataset(tmp_path):
    flat = Case("flat", "unlabelled", (), lambda: CaseContent((SimpleITK.GetImageFromArray(HU[0]),)))
    four = Case("four", "unlabelled", (),
                lambda: CaseContent((SimpleITK.JoinSeries([volume(HU), volume(HU)]),)))
    colour = Case("colour", "unlabelled", (),
                  lambda: CaseContent((SimpleITK.GetImageFromArray(np.zeros((2, 3, 4, 3)), isVector=True),)))
    report = write_dataset([flat, four, colour, case(tmp_path, "a")], DESCRIPTION, tmp_path / "Dataset007_Toy",
                           check_only=True)
    assert [entry.reason.split(",")[0].split(" of size")[0] for entry in report.rejected] == \
        ["the image is 2D", "the image is 4D", "3 values a voxel"]


def test_a_rejected_unlabelled_case_is_left_out_and_reported(tmp_path):
    cases = [case(tmp_path, "a"), case(tmp_path, "u", "unlabelled"),
             case(tmp_path, "bad", "unlabelled", image=np.full(HU.shape, np.nan))]
    target = tmp_path / "Dataset007_Toy"
    report = write_dataset(cases, DESCRIPTION, target)
    assert [file.name for file in (target / "imagesUl").iterdir()] == ["u_0000.nii.gz"]
    assert "NaN" in report.select("unlabelled", "rejected")[0].reason


def test_ids_must_differ_over_all_parts(tmp_path):
    with pytest.raises(UserError, match="used twice, e.g. a "):
        write_dataset([case(tmp_path, "a"), case(tmp_path, "a", "unlabelled")], DESCRIPTION, tmp_path / "x")


def test_an_existing_dataset_is_not_touched(tmp_path):
    target = tmp_path / "Dataset007_Toy"
    target.mkdir()
    (target / "mine").write_text("x")
    with pytest.raises(UserError, match="exists; choose another -d or remove it"):
        write_dataset([case(tmp_path, "a")], DESCRIPTION, target)
    assert [file.name for file in target.iterdir()] == ["mine"]


def test_a_dataset_without_labelled_cases_is_refused(tmp_path):
    with pytest.raises(UserError, match="no labelled case"):
        write_dataset([case(tmp_path, "u", "unlabelled")], DESCRIPTION, tmp_path / "raw" / "Dataset007_Toy")
    assert not (tmp_path / "raw").exists()


def test_a_crash_before_any_case_is_finished_leaves_nothing(tmp_path):
    def crash():
        raise KeyboardInterrupt
    cases = [replace(case(tmp_path, "b"), read=crash), case(tmp_path, "a")]
    with pytest.raises(KeyboardInterrupt):
        write_dataset(cases, DESCRIPTION, tmp_path / "raw" / "Dataset007_Toy")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_full_disk_is_noticed_even_where_itk_does_not(tmp_path, monkeypatch, share):
    """ITK's NIfTI writer prints to stderr, leaves an empty file or the beginning of one, and reports success."""
    write = SimpleITK.WriteImage

    def write_a_part(image: SimpleITK.Image, path: str, **options: object) -> None:
        write(image, path, **options)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:int(share * len(content))])

    monkeypatch.setattr(SimpleITK, "WriteImage", write_a_part)
    with pytest.raises(UserError, match="cannot be written.*MB are free"):
        write_dataset([case(tmp_path, "a")], DESCRIPTION, tmp_path / "raw" / "Dataset007_Toy")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("case_id", ["", "../evil", "a/b", "a\\b", "C:x", ".hidden", " a", "a\nb"])
def test_an_id_must_be_a_file_name(tmp_path, case_id):
    with pytest.raises(UserError, match="can be no file name") as caught:
        write_dataset([replace(case(tmp_path, "a"), id=case_id)], DESCRIPTION, tmp_path / "raw" / "Dataset007_Toy")
    assert "\n" not in str(caught.value) and not (tmp_path / "raw").exists()


def test_a_label_gets_the_exact_geometry_of_its_image(tmp_path):
    """They agree but for rounding, as the writer checks; nnU-Net's own check is stricter."""
    rounded = case(tmp_path, "a", spacing=(0.7000004, 0.8, 5.0), origin=(1.0004, 2.0, 3.0), layout=LAYOUT)
    target = tmp_path / "Dataset007_Toy"
    write_dataset([rounded], DESCRIPTION, target)
    image, label, layout = (read(target / name) for name in
                            ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "layoutsTr/a.nii.gz"))
    assert image.GetOrigin()[0] == pytest.approx(1.0004)
    for other in (label, layout):
        assert (other.GetOrigin(), other.GetSpacing()) == (image.GetOrigin(), image.GetSpacing())


# -- what is written beside the images ---------------------------------------------------------------------------------


def test_the_report_says_where_it_is_from_and_how_it_was_made(tmp_path):
    target = tmp_path / "Dataset007_Toy"
    write_dataset([case(tmp_path, "a", metadata={"kernel": "B31f"})], DESCRIPTION, target,
                  options={"type": "toy", "task": "lesion"})
    stored = json.loads((target / "conversion_report.json").read_text())
    assert (stored["source"], stored["licence"], stored["citation"]) == (
        "https://example.org/toys", "CC0", "A. Author, Toys, 2020")
    assert stored["options"] == {"type": "toy", "task": "lesion"} and stored["notes"] == ["a toy"]
    entry, = stored["cases"]
    assert entry["metadata"] == {"age": 5, "kernel": "B31f"}            # what was known before and after reading
    assert entry["files"] == ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"]


def test_metadata_of_all_written_cases_as_a_table(tmp_path):
    cases = [case(tmp_path, "a", metadata={"kernel": "B31f, \"soft\"", "rejected": ["x"]}),
             case(tmp_path, "u", "unlabelled", metadata={"thickness": 1.5, "contrast": True, "dose": None}),
             case(tmp_path, "bad", "unlabelled", image=np.full(HU.shape, np.nan))]
    write_dataset(cases, DESCRIPTION, tmp_path / "Dataset007_Toy")
    with open(tmp_path / "Dataset007_Toy" / "metadata.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["id", "role", "age", "kernel", "thickness", "contrast"],
                                          ["a", "labelled", "5", 'B31f, "soft"', "", ""],
                                          ["u", "unlabelled", "5", "", "1.5", "True"]]


def test_no_metadata_no_table(tmp_path):
    write_dataset([replace(case(tmp_path, "a"), metadata={})], DESCRIPTION, tmp_path / "Dataset007_Toy")
    assert not (tmp_path / "Dataset007_Toy" / "metadata.csv").exists()


# -- folds of the source -----------------------------------------------------------------------------------------------


FOLDS = [{"name": "official", "train": ["a"], "val": ["b"], "test_sets": {"Dataset009_Other": ["x"]}},
         {"train": ["b"], "unlabelled": ["a"], "val": ["c"]}]


def write_with_folds(root, folds, reject=()):
    cases = [case(root, case_id, **({"label": LABEL * 7} if case_id in reject else {})) for case_id in "abc"]
    return write_dataset([*cases, case(root, "u", "unlabelled")], DESCRIPTION, root / "raw" / "Dataset007_Toy",
                         allow_rejected=True, preprocessed=root / "preprocessed" / "Dataset007_Toy",
                         make_splits=folds if callable(folds) else lambda cases: folds)


def folds_file(root: Path) -> Path:
    return root / "preprocessed" / "Dataset007_Toy" / "splits_final.json"


def test_folds_are_made_of_what_was_written(tmp_path):
    seen = []
    write_with_folds(tmp_path, lambda cases: seen.extend(case.id for case in cases) or FOLDS[:1], reject="c")
    assert seen == ["a", "b", "u"]
    assert json.loads(folds_file(tmp_path).read_text()) == FOLDS[:1]


def test_without_folds_nothing_is_written(tmp_path):
    write_with_folds(tmp_path, [])
    assert not (tmp_path / "preprocessed").exists()


@pytest.mark.parametrize(("folds", "message"), [
    ([{"train": ["a"], "val": ["a"]}], "case a of the fold is labelled .* and validation"),
    ([{"train": [], "val": ["a"]}], "no labelled training case"),
    ([{"train": ["a"]}], '"train" and "val"'),
    ([{"name": "x", "train": ["a"], "val": ["nobody", "zz"]}], r"the fold x names 2 case\(s\) .* e\.g\. nobody"),
    ([{"train": ["a"], "val": ["u"]}], "no labelled cases of this dataset, e.g. u"),
    ([{"name": "x", "train": ["a"], "val": []}] * 2, "several folds called x"),
])
def test_folds_that_cannot_be_right(tmp_path, folds, message):
    with pytest.raises(UserError, match=message):
        write_with_folds(tmp_path, folds)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [HIDDEN] and not (tmp_path / "preprocessed").exists()


@pytest.mark.parametrize("folds", [FOLDS, []])
def test_other_folds_are_never_overwritten(tmp_path, folds):
    folds_file(tmp_path).parent.mkdir(parents=True)
    folds_file(tmp_path).write_text("[]")
    with pytest.raises(UserError, match="holds other folds.*remove it"):
        write_with_folds(tmp_path, folds)
    assert folds_file(tmp_path).read_text() == "[]" and not (tmp_path / "raw" / "Dataset007_Toy").exists()


def test_killed_between_the_folds_and_the_dataset(tmp_path, monkeypatch):
    """The dataset is never there without its folds, which nnU-Net would replace by its own without a word."""
    def kill(path: Path, target: Path) -> None:
        assert folds_file(tmp_path).exists()
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", kill)
        write_with_folds(tmp_path, FOLDS)
    assert not (tmp_path / "raw" / "Dataset007_Toy").exists()
    take_reads(tmp_path)
    write_with_folds(tmp_path, FOLDS)
    assert take_reads(tmp_path) == [] and (tmp_path / "raw" / "Dataset007_Toy").exists()
    assert json.loads(folds_file(tmp_path).read_text()) == FOLDS
