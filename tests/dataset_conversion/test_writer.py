import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.dataset_conversion.writer import write_dataset
from nnunet_synth.errors import UserError

HIDDEN = ".Dataset007_Toy.converting"
DESCRIPTION = DatasetDescription(
    name="Toy", channel_names=("CT",), labels={"background": 0, "lesion": 1}, file_ending=".nii.gz",
    reader_writer="SimpleITKIO", num_dimensions=3, licence="CC0", citation="A. Author, Toys, 2020",
    source="https://example.org/toys", layout_labels={"left_lung": 1, "right_lung": 2}, notes=("a toy",))
RNG = np.random.default_rng(0)
HU = RNG.integers(-1000, 1000, (3, 8, 9)).astype(np.int16)
LABEL = (HU > 500).astype(np.uint8)
LAYOUT = RNG.integers(0, 3, HU.shape).astype(np.uint8)


def volume(array, spacing=(0.7, 0.8, 5.0), origin=(1.0, 2.0, 3.0), direction=(1, 0, 0, 0, -1, 0, 0, 0, -1)):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def content(image=None, label=None, layout=None, repairs=(), **geometry):
    """Arrays, so that it can be sent to a worker process."""
    to_image = partial(volume, **geometry)
    return CaseContent((to_image(HU if image is None else image),), None if label is None else volume(label),
                       None if layout is None else volume(layout), repairs)


def case(tmp_path: Path, case_id: str, role="labelled", **options) -> Case:
    (tmp_path / f"{case_id}.source").write_text(case_id)
    if role == "labelled":
        options = {"label": LABEL, **options}
    return Case(case_id, role, (SourceFile(tmp_path, f"{case_id}.source"),), partial(content, **options),
                group="patient", metadata={"age": 5})


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
    for name, expected in (("imagesTr/a_0000", HU), ("labelsTr/a", LABEL), ("layoutsUl/u", LAYOUT)):
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
    assert not list((tmp_path / "raw").iterdir())


def test_a_full_disk_is_noticed_even_where_itk_does_not(tmp_path, monkeypatch):
    # On a full disk ITK's NIfTI writer prints to stderr, leaves an empty file and reports success.
    monkeypatch.setattr(SimpleITK, "WriteImage", lambda image, path, **options: Path(path).write_bytes(b""))
    with pytest.raises(UserError, match="cannot be written.*MB are free"):
        write_dataset([case(tmp_path, "a")], DESCRIPTION, tmp_path / "raw" / "Dataset007_Toy")
    assert not list((tmp_path / "raw").iterdir())
