import argparse
import itertools
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.dataset_conversion import covid19_ct_seg, mosmed
from nnunet_synth.dataset_conversion.covid19_ct_seg import Options, describe, find_cases, make_splits, read_case
from nnunet_synth.dataset_conversion.report import ConversionReport
from nnunet_synth.dataset_conversion.sources import SourceFile
from nnunet_synth.dataset_conversion.writer import convert_case, write_dataset
from nnunet_synth.errors import UserError
from tests.conftest import set_folders
from tests.makers import covid_semiseg as covid_semiseg_maker
from tests.makers import mosmed as mosmed_maker
from tests.makers.covid19_ct_seg import CASES, FOLDERS, HEAD_FIRST, patient, to_gray, write_tree, zip_folders
from tests.makers.volumes import phantom, write_volume

IMAGES, LUNGS, INFECTION, BOTH = FOLDERS
FLIPS = [axes for number in range(4) for axes in itertools.combinations(range(3), number)]
CORONACASES = [case for case in CASES if case.startswith("coronacases")]
RADIOPAEDIA = [case for case in CASES if case.startswith("radiopaedia")]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("download"))


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "COVID-19-CT-Seg"))


@pytest.fixture(scope="module")
def converted(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConversionReport]:
    return {task: convert(template, tmp_path_factory.mktemp(task), task=task) for task in covid19_ct_seg.TASKS}


def convert(source: Path, root: Path, allow_rejected: bool = False, **options) -> ConversionReport:
    chosen = Options(**options)
    name = "Dataset023_COVID19CTSeg"
    return write_dataset(find_cases(source, chosen), describe(chosen), root / "nnUNet_raw" / name,
                         allow_rejected=allow_rejected, make_splits=lambda cases: make_splits(cases, chosen),
                         preprocessed=root / "nnUNet_preprocessed" / name)


def folds(root: Path) -> list[dict]:
    return json.loads((root / "nnUNet_preprocessed" / "Dataset023_COVID19CTSeg" / "splits_final.json").read_text())


def read(file: Path) -> SimpleITK.Image:
    return SimpleITK.ReadImage(str(file))


def array(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image)


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", CORONACASES)
def test_cases_in_hu_keep_every_voxel_at_its_physical_point(converted, template, case_id):
    for task, report in converted.items():
        for kind, folder in (("imagesTr", IMAGES), ("labelsTr", INFECTION if task == "infection" else BOTH),
                             ("layoutsTr", LUNGS)):
            if kind == "layoutsTr" and task == "lung-infection":
                continue
            suffix = "_0000" if kind == "imagesTr" else ""
            written, stored = read(report.folder / kind / f"{case_id}{suffix}.nii.gz"), read(
                template / folder / f"{case_id}.nii.gz")
            np.testing.assert_allclose(written.GetDirection(), np.eye(3).ravel(), atol=1e-6)
            there = SimpleITK.Resample(stored, written, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, -9999)
            np.testing.assert_array_equal(array(written), array(there))


@pytest.mark.parametrize("case_id", CASES)
def test_written_arrays_run_as_the_anatomy_does(converted, case_id):
    truth = patient(case_id)
    for task, report in converted.items():
        image, label = (read(report.folder / name) for name in
                        (f"imagesTr/{case_id}_0000.nii.gz", f"labelsTr/{case_id}.nii.gz"))
        np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-6)
        np.testing.assert_allclose(image.GetSpacing(), truth.spacing[::-1], rtol=1e-5)
        hu = array(image)
        if case_id in CORONACASES:
            np.testing.assert_array_equal(hu, truth.image)
        else:
            inside = truth.image <= 250
            assert np.abs(hu - truth.image)[inside].max() <= 1500 / 255 / 2 + 1e-3
            assert (hu[~inside] == 250).all() and (~inside).any()
        lesions = array(label) == covid19_ct_seg.TASKS[task]["infection"]
        np.testing.assert_array_equal(lesions, truth.label > 0)                     # Dice 1.0
        assert lesions.any()
        lungs = label if task == "lung-infection" else read(report.folder / f"layoutsTr/{case_id}.nii.gz")
        seen = ~lesions if task == "lung-infection" else np.full(lesions.shape, True)
        np.testing.assert_array_equal(array(lungs)[seen], truth.layout[seen])
        assert np.mean(np.nonzero(array(lungs) == 1)[2]) > np.mean(np.nonzero(array(lungs) == 2)[2])


def test_repairs_are_reported_with_what_was_measured(converted):
    for report in converted.values():
        for case in report.cases:
            expected = ["turned from LAS to LPS"]
            if case.id in RADIOPAEDIA:
                low, high = (to_gray(patient(case.id).image).min(), to_gray(patient(case.id).image).max())
                expected += [f"gray values {low} to {high} scaled back to HU, window -1250…250"]
                expected += ["head and feet reversed against the header"] * (case.id == HEAD_FIRST)
                expected += ["front and back reversed against the header"]
            assert list(case.repairs) == expected
            assert case.metadata["limited_to_window"] == (case.id in RADIOPAEDIA)
            assert case.metadata["lung_litres"] == pytest.approx(
                (patient(case.id).layout > 0).sum() * np.prod(case.spacing) / 1e6, abs=0.01)
            assert (case.metadata["evidence_front_to_back"] < 0) == (case.id in RADIOPAEDIA)
        json.dumps(report.to_json(describe(Options()), {}))


def test_dataset_json_states_both_licences_and_what_is_lost(converted):
    infection, both = (json.loads((report.folder / "dataset.json").read_text()) for report in converted.values())
    assert infection["labels"] == {"background": 0, "infection": 1}
    assert infection["nnunet_synth"]["layout_labels"] == {"left_lung": 1, "right_lung": 2}
    assert both["labels"] == {"background": 0, "left_lung": 1, "right_lung": 2, "infection": 3}
    assert both["nnunet_synth"]["layout_labels"] == {}
    assert not (converted["lung-infection"].folder / "layoutsTr").exists()
    for description in (infection, both):
        assert description["numTraining"] == 20
        assert "CC BY 4.0" in description["licence"] and "CC BY-NC-SA" in description["licence"]
        notes = " ".join(description["nnunet_synth"]["notes"])
        assert "cannot be recovered" in notes and "one patient" in notes


@pytest.mark.parametrize("layout", ["zips", "one zip", "folder above"])
def test_archives_are_read_as_the_folders_are(source, converted, tmp_path, layout):
    if layout == "zips":
        source = zip_folders(source)
        (source / "read me.txt").write_text("extra files do no harm")
        shutil.copy(source / "read me.txt", source / "coronacases_011.nii.gz")
    elif layout == "one zip":
        source = Path(shutil.make_archive(str(tmp_path / "all"), "zip", source))
    else:
        source = source.parent
    report = convert(source, tmp_path)
    expected = converted["infection"]
    assert [case.id for case in report.cases] == [case.id for case in expected.cases]
    for case, other in zip(report.cases, expected.cases, strict=True):
        assert case.label_counts == other.label_counts and list(case.sources.values()) == list(other.sources.values())
    name = f"imagesTr/{HEAD_FIRST}_0000.nii.gz"
    np.testing.assert_array_equal(array(read(report.folder / name)), array(read(expected.folder / name)))


@pytest.mark.parametrize("is_gray", [False, True], ids=["HU", "gray values"])
@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "LPI"])
def test_all_reversals_under_all_headers_end_as_the_same_arrays(tmp_path, axes, is_gray):
    truth = phantom(1)
    for reversed_axes in FLIPS:
        arrays = {IMAGES: to_gray(truth.image) if is_gray else truth.image, LUNGS: truth.layout,
                  INFECTION: truth.label}
        for folder, values in arrays.items():
            write_volume(np.flip(values, reversed_axes), truth.spacing, tmp_path / folder / "a.nii.gz", axes)
        content = read_case({folder: SourceFile(tmp_path, f"{folder}/a.nii.gz") for folder in arrays}, "infection")
        assert np.abs(array(content.images[0]) - np.minimum(truth.image, 250 if is_gray else 9999)).max() <= (
            1500 / 255 / 2 + 1e-3 if is_gray else 0)
        np.testing.assert_array_equal(array(content.label), truth.label)
        np.testing.assert_array_equal(array(content.layout), truth.layout)
        assert sum("reversed" in repair for repair in content.repairs) == len(reversed_axes)
        assert not any("NOT" in repair for repair in content.repairs)


def test_what_a_user_put_right_already_stays_as_it_is(source, converted, tmp_path):
    mended = converted["infection"].folder
    for case_id in RADIOPAEDIA:
        shutil.copy(mended / "imagesTr" / f"{case_id}_0000.nii.gz", source / IMAGES / f"{case_id}.nii.gz")
        shutil.copy(mended / "labelsTr" / f"{case_id}.nii.gz", source / INFECTION / f"{case_id}.nii.gz")
        shutil.copy(mended / "layoutsTr" / f"{case_id}.nii.gz", source / LUNGS / f"{case_id}.nii.gz")
    report = convert(source, tmp_path)
    for case in report.cases:
        assert case.status == ("written" if case.id in RADIOPAEDIA else "repaired")
        name = f"imagesTr/{case.id}_0000.nii.gz"
        np.testing.assert_array_equal(array(read(report.folder / name)), array(read(mended / name)))


@pytest.mark.parametrize("task, folder", [("infection", LUNGS), ("lung-infection", BOTH)])
def test_exchanged_lungs_are_renumbered(source, converted, tmp_path, task, folder):
    case_id = "coronacases_002"
    lungs = read(source / folder / f"{case_id}.nii.gz")
    SimpleITK.WriteImage(SimpleITK.ChangeLabel(lungs, changeMap={1: 2, 2: 1}),
                         str(source / folder / f"{case_id}.nii.gz"))
    report = convert(source, tmp_path, task=task)
    case, = (case for case in report.cases if case.id == case_id)
    assert "left and right lung exchanged in the lung map" in case.repairs
    name = f"{'layoutsTr' if task == 'infection' else 'labelsTr'}/{case_id}.nii.gz"
    np.testing.assert_array_equal(array(read(report.folder / name)), array(read(converted[task].folder / name)))


def test_a_mask_with_another_origin_is_laid_on_its_image(source, converted, tmp_path):
    file = source / INFECTION / f"{CASES[0]}.nii.gz"
    mask = read(file)
    mask.SetOrigin((0.0, 0.0, 0.0))
    SimpleITK.WriteImage(mask, str(file))
    report = convert(source, tmp_path)
    case, = (case for case in report.cases if case.id == CASES[0])
    assert any(repair.startswith("origin of Infection_Mask set to that of the image") for repair in case.repairs)
    name = f"labelsTr/{CASES[0]}.nii.gz"
    np.testing.assert_array_equal(array(read(report.folder / name)), array(read(converted["infection"].folder / name)))


# -- folds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, file", [("20-80", "Task1_COVID_datasplit.json"),
                                        ("80-20", "Task1_COVID_82_datasplit.json")])
def test_folds_are_the_published_ones(converted, shared_data, kind, file):
    published = json.loads((shared_data / "splits" / file).read_text())
    ours = make_splits(converted["infection"].cases, Options(folds=kind))
    assert [entry["name"] for entry in ours] == [f"{kind.replace('-', '_')}_fold{index}" for index in range(5)]
    for entry, expected in zip(ours, published, strict=True):
        assert entry["train"] == sorted(expected["train"]) and entry["val"] == sorted(expected["val"])


def test_ten_folds_are_written_small_training_sets_first(converted):
    for task, report in converted.items():
        written = folds(report.folder.parents[1])
        assert written == make_splits(report.cases, Options(task=task))
        assert [(len(fold["train"]), len(fold["val"])) for fold in written] == [(4, 16)] * 5 + [(16, 4)] * 5
        assert all({*fold["train"], *fold["val"]} == set(CASES) for fold in written)
        for part in ("train", "val"):
            half = written[:5] if part == "train" else written[5:]
            assert sorted(case for fold in half for case in fold[part]) == sorted(CASES)
        assert written[0]["name"] == "20_80_fold0" and written[9]["name"] == "80_20_fold4"


def test_the_patient_scanned_twice_is_one_group_and_the_folds_that_part_it_are_named(converted):
    report = converted["infection"]
    groups = {case.id: case.group for case in report.cases}
    pair = [case for case in groups if list(groups.values()).count(groups[case]) > 1]
    assert pair == ["radiopaedia_10_85902_1", "radiopaedia_10_85902_3"] and len(set(groups.values())) == 19
    parted = [fold["name"] for fold in folds(report.folder.parents[1]) if len(set(pair) & set(fold["train"])) == 1]
    assert parted == ["20_80_fold2", "20_80_fold4", "80_20_fold2", "80_20_fold4"]
    note, = (note for note in describe(Options()).notes if pair[0] in note)
    assert pair[1] in note and "2 and 4" in note


# -- the second test set -----------------------------------------------------------------------------------------------


@pytest.fixture
def mosmed_dataset(tmp_path, monkeypatch) -> Path:
    """A converted MosMedData, id 21."""
    set_folders(monkeypatch, tmp_path)
    download = mosmed_maker.write_tree(tmp_path, size=32, num_slices=6)
    options = mosmed.Options()
    return write_dataset(mosmed.find_cases(download, options), mosmed.describe(options),
                         tmp_path / "nnUNet_raw" / "Dataset021_MosMed").folder


def test_the_labelled_cases_of_mosmed_become_a_second_test_set(template, mosmed_dataset, tmp_path):
    convert(template, tmp_path, test_set=21)
    labelled = sorted(file.name.removesuffix(".nii.gz") for file in (mosmed_dataset / "labelsTr").iterdir())
    assert len(labelled) == 6 and "study_0255" in labelled and "study_0001" not in labelled
    assert [fold["test_sets"] for fold in folds(tmp_path)] == [{"Dataset021_MosMed": labelled}] * 10


def _rewrite(dataset: Path, **changes) -> None:
    file = dataset / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("spoil, reason", [
    (lambda dataset: shutil.rmtree(dataset), "found none"),
    (lambda dataset: (dataset / "dataset.json").unlink(), "does not exist"),
    (lambda dataset: _rewrite(dataset, nnunet_synth={"source": "https://example.org"}), "not converted from Mos"),
    (lambda dataset: _rewrite(dataset, labels={"background": 0, "lesion": 1}), "has the labels"),
], ids=["missing", "no description", "another source", "other labels"])
def test_what_is_no_second_test_set_is_refused_before_anything_is_read(template, mosmed_dataset, tmp_path, spoil,
                                                                       reason):
    spoil(mosmed_dataset)
    with pytest.raises(UserError, match=reason) as caught:
        next(find_cases(template, Options(test_set=21)))
    assert "\n" not in str(caught.value)


# -- bad input ---------------------------------------------------------------------------------------------------------


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def _change(file: Path, change) -> None:
    image = read(file)
    values = array(image)
    changed = SimpleITK.GetImageFromArray(change(values))
    changed.SetSpacing(image.GetSpacing())
    changed.SetOrigin(image.GetOrigin())
    changed.SetDirection(image.GetDirection())
    SimpleITK.WriteImage(changed, str(file))


def _with_value(value: int):
    def change(values: np.ndarray) -> np.ndarray:
        values[tuple(np.argwhere(values == values.max())[0])] = value
        return values
    return change


def _respaced(file: Path) -> None:
    image = read(file)
    image.SetSpacing((1.0, 1.0, 1.0))
    SimpleITK.WriteImage(image, str(file))


CASE = "coronacases_004"
DEFECTS = {
    "missing mask": (INFECTION, Path.unlink, "Infection_Mask holds no coronacases_004"),
    "missing lungs": (LUNGS, Path.unlink, "Lung_Mask holds no coronacases_004"),
    "missing image": (IMAGES, Path.unlink, "COVID-19-CT-Seg_20cases holds no coronacases_004"),
    "truncated": (IMAGES, _truncate, "truncated"),
    "empty file": (INFECTION, lambda file: file.write_bytes(b""), "is empty"),
    "other shape": (INFECTION, lambda file: _change(file, lambda mask: mask[:-1]), "has the shape"),
    "other spacing": (INFECTION, _respaced, "differ in spacing"),
    "undeclared infection": (INFECTION, lambda file: _change(file, _with_value(2)), r"undeclared value\(s\) \[2\]"),
    "undeclared lung": (LUNGS, lambda file: _change(file, _with_value(3)), r"layout holds undeclared value\(s\) \[3\]"),
    "empty lungs": (LUNGS, lambda file: _change(file, np.zeros_like), "lung map is empty"),
    "unknown scale": (IMAGES, lambda file: _change(file, lambda hu: hu + np.int16(1024)), "neither HU"),
    "lungs of somebody else": (LUNGS, lambda file: _change(file, lambda lungs: np.roll(lungs, 32, 1)),
                              "do not fit each other"),
    "infection of somebody else": (INFECTION, lambda file: _change(file, lambda mask: np.roll(mask, 32, 1)),
                                   "do not fit each other"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_case_with_a_defect_is_rejected_with_one_reason(source, defect):
    folder, spoil, reason = DEFECTS[defect]
    spoil(source / folder / f"{CASE}.nii.gz")
    case, = (case for case in find_cases(source, Options()) if case.id == CASE)
    report = convert_case(case, describe(Options()), None)
    assert report.status == "rejected" and re.search(reason, report.reason) and "\n" not in report.reason


def test_a_defect_stops_the_conversion_or_leaves_the_case_out_of_dataset_and_folds(source, tmp_path):
    (source / INFECTION / f"{CASE}.nii.gz").unlink()
    with pytest.raises(UserError, match=f"{CASE} was rejected: Infection_Mask holds no {CASE}.nii.gz"):
        convert(source, tmp_path)
    assert not list((tmp_path / "nnUNet_raw").glob("Dataset*"))

    report = convert(source, tmp_path, allow_rejected=True)
    assert [case.id for case in report.rejected] == [CASE]
    assert json.loads((report.folder / "dataset.json").read_text())["numTraining"] == 19
    assert all(len(fold["train"]) + len(fold["val"]) == 19 and CASE not in fold["train"] + fold["val"]
               for fold in folds(tmp_path))


def test_an_undeclared_value_of_the_combined_mask_is_refused(source):
    _change(source / BOTH / f"{CASE}.nii.gz", _with_value(4))
    options = Options(task="lung-infection")
    case, = (case for case in find_cases(source, options) if case.id == CASE)
    assert "label holds undeclared value(s) [4]" in convert_case(case, describe(options), None).reason


@pytest.mark.parametrize("task, folder", [("infection", INFECTION), ("infection", LUNGS), ("infection", IMAGES),
                                          ("lung-infection", BOTH)])
def test_a_missing_archive_is_named(source, task, folder):
    shutil.rmtree(source / folder)
    with pytest.raises(UserError, match=f"holds no {folder}.zip and no folder {folder}"):
        list(find_cases(source, Options(task=task)))


@pytest.mark.parametrize("task, spare", [("infection", [BOTH]), ("lung-infection", [LUNGS, INFECTION])])
def test_archives_that_the_task_does_not_need_may_be_missing(source, task, spare):
    for folder in spare:
        shutil.rmtree(source / folder)
    assert len(list(find_cases(source, Options(task=task)))) == 20


def test_another_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="Zenodo 3757476"):
        list(find_cases(covid_semiseg_maker.write_tree(tmp_path), Options()))
    with pytest.raises(UserError, match="does not exist"):
        list(find_cases(tmp_path / "nowhere", Options()))


def test_a_file_that_is_there_twice_is_refused(source):
    with zipfile.ZipFile(source / "copy.zip", "w") as archive:
        archive.write(source / LUNGS / f"{CASE}.nii.gz", f"{LUNGS}/{CASE}.nii.gz")
    with pytest.raises(UserError, match="are the same file of Lung_Mask: remove one"):
        list(find_cases(source, Options()))


def test_options():
    parser = argparse.ArgumentParser()
    covid19_ct_seg.add_arguments(parser)
    assert Options(**vars(parser.parse_args([]))) == Options()
    chosen = Options(**vars(parser.parse_args("--folds 80-20 --test-set 521".split())))
    assert chosen == Options(folds="80-20", test_set=521)
    for wrong, reason in (({"task": "lung"}, "no task 'lung'"), ({"folds": "50-50"}, "no folds '50-50'"),
                          ({"task": "lung-infection", "test_set": 521}, "has no lung masks")):
        with pytest.raises(UserError, match=reason):
            Options(**wrong)
