import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.cli import main
from nnunet_synth.dataset_conversion import covid_19_20
from nnunet_synth.dataset_conversion.case import Case
from nnunet_synth.dataset_conversion.covid_19_20 import (
    RATIOS,
    Options,
    describe,
    draw_folds,
    find_cases,
    make_splits,
    patient_of,
)
from nnunet_synth.dataset_conversion.writer import CaseReport, write_dataset
from nnunet_synth.errors import UserError
from tests.conftest import set_folders
from tests.makers.covid_19_20 import AXES, PREFIX, TRAIN, VALIDATION, mix_sides, write_names, write_tree, write_workbook
from tests.makers.volumes import patient, write_volume


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("covid1920")
    write_tree(root)
    return root


@pytest.fixture
def source(template, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(template / "COVID-19-20_v2", tmp_path / "COVID-19-20_v2")


@pytest.fixture
def published(shared_data) -> Path:
    return shared_data / "splits" / "COVID249_splits.json"


@pytest.fixture
def complete(published, shared_data, tmp_path) -> Options:
    """The whole challenge by name: 199 in Train, 50 in Validation, whose labels are given. SOURCE is in `tmp_path`."""
    validation = {name.removesuffix(".nii.gz") for name, *_ in
                  json.loads((shared_data / "covid19_20_lungs" / "geometry.json").read_text())}
    ids = sorted({case for part in json.loads(published.read_text()).values() for case in part})
    write_names(tmp_path, ids, validation)
    (tmp_path / "labels").mkdir()
    for case_id in validation:
        (tmp_path / "labels" / f"{case_id}.nii.gz").touch()
    return Options(validation_labels=tmp_path / "labels", split="sacps", split_file=published)


def by_id(cases) -> dict[str, Case]:
    return {case.id: case for case in cases}


def array(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image)


def drawn(number: str):
    return patient((*TRAIN, *VALIDATION).index(number))


def written(cases) -> list[CaseReport]:
    """What `make_splits` would be given if every case could be read."""
    return [CaseReport(case.id, case.role, "written", has_label=len(case.sources) > 1, metadata=dict(case.metadata))
            for case in cases]


# ----------------------------------------------------------------------------------------------------------------------


def test_roles_and_ids(template):
    cases = by_id(find_cases(template / "COVID-19-20_v2", Options()))
    assert {name: case.role for name, case in cases.items()} == {
        **{PREFIX + number: "labelled" for number in TRAIN},
        **{PREFIX + number: "unlabelled" for number in VALIDATION}}
    assert cases[PREFIX + "0180_0"].group == PREFIX + "0180"


def test_validation_is_labelled_where_labels_are_given(template, source, tmp_path):
    cases = find_cases(source, Options(validation_labels=template / "validation_labels"))
    assert {case.role for case in cases} == {"labelled"}
    shutil.copy(template / "validation_labels" / f"{PREFIX}0004_seg.nii.gz", source / "Validation")
    cases = by_id(find_cases(source, Options()))
    assert {PREFIX + number: cases[PREFIX + number].role for number in VALIDATION} == {
        PREFIX + number: "labelled" if number == "0004" else "unlabelled" for number in VALIDATION}
    assert cases[PREFIX + "0004"].read().label is not None
    plain = tmp_path / "plain"                                      # without _seg
    plain.mkdir()
    shutil.copy(template / "validation_labels" / f"{PREFIX}0490_seg.nii.gz", plain / f"{PREFIX}0490.nii.gz")
    cases = by_id(find_cases(source, Options(validation_labels=plain)))
    assert cases[PREFIX + "0490"].role == "labelled" and cases[PREFIX + "0697"].role == "unlabelled"


def test_the_parent_folder_an_archive_or_one_part(source):
    expected = [(case.id, case.role) for case in find_cases(source, Options())]
    assert [(case.id, case.role) for case in find_cases(source.parent, Options())] == expected
    archive = Path(shutil.make_archive(str(source.parent / "download"), "zip", source.parent, source.name))
    assert [(case.id, case.role) for case in find_cases(archive, Options())] == expected
    assert [(case.id, case.role) for case in find_cases(source / "Train", Options())] == \
        [pair for pair in expected if pair[1] == "labelled"]


@pytest.mark.parametrize("number", ["0014", "0255", "0490"])
def test_what_is_read_is_the_phantom_in_lps(template, number):
    options = Options(validation_labels=template / "validation_labels", lungs=template / "lungs")
    content = by_id(find_cases(template / "COVID-19-20_v2", options))[PREFIX + number].read()
    case = drawn(number)
    for image, expected in ((content.images[0], case.image), (content.label, case.label),
                            (content.layout, case.layout)):
        np.testing.assert_array_equal(array(image), expected)
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        np.testing.assert_allclose(image.GetOrigin(), (-185.0, -170.5, -962.25))
    assert content.repairs == (("turned from LPI to LPS",) if number in AXES else ())


def test_the_dataset_is_written_and_turned_volumes_are_reported(template, tmp_path):
    options = Options(lungs=template / "lungs")
    report = write_dataset(find_cases(template / "COVID-19-20_v2", options), describe(options),
                           tmp_path / "Dataset522_C")
    assert "3 x turned from LPI to LPS" in report.table()
    assert {folder: len(list((report.folder / folder).iterdir())) for folder in
            ("imagesTr", "labelsTr", "layoutsTr", "imagesUl", "layoutsUl")} == \
        {"imagesTr": 8, "labelsTr": 8, "layoutsTr": 8, "imagesUl": 4, "layoutsUl": 4}
    assert (report.folder / "imagesUl" / f"{PREFIX}0180_0_0000.nii.gz").is_file()
    dataset_json = json.loads((report.folder / "dataset.json").read_text())
    assert dataset_json["nnunet_synth"]["layout_labels"] == {"left_lung": 1, "right_lung": 2}
    assert "CC BY 4.0" in dataset_json["licence"] and "102605" in dataset_json["citation"]


# ----------------------------------------------------------------------------------------------------------------------
# Lungs


def sided_like(template: Path, tmp_path: Path, change) -> tuple[np.ndarray, tuple[str, ...], dict]:
    """A case's layout, repairs and metadata, with its lung mask changed before."""
    case = drawn("0014")
    write_volume(change(case.layout), case.spacing, tmp_path / "lungs" / f"{PREFIX}0014.nii.gz", "RAS")
    options = Options(lungs=tmp_path / "lungs")
    content = by_id(find_cases(template / "COVID-19-20_v2", options))[PREFIX + "0014"].read()
    return array(content.layout), content.repairs, content.metadata


def test_lungs_numbered_as_ours_stay(template, tmp_path):
    layout, repairs, metadata = sided_like(template, tmp_path, lambda lungs: lungs)
    np.testing.assert_array_equal(layout, drawn("0014").layout)
    assert repairs == () and metadata["lungs_on_their_side"] > 0.99


def test_lungs_numbered_as_lungmask_does_are_exchanged(template, tmp_path):
    layout, repairs, _ = sided_like(template, tmp_path, lambda lungs: np.array([0, 2, 1], np.uint8)[lungs])
    np.testing.assert_array_equal(layout, drawn("0014").layout)
    assert repairs == ("lung mask: 1 was the right lung, exchanged with 2",)


def test_lungs_mixed_up_get_the_side_they_lie_on(template, tmp_path):
    layout, repairs, metadata = sided_like(template, tmp_path, mix_sides)
    truth = drawn("0014").layout
    np.testing.assert_array_equal(layout > 0, truth > 0)
    assert (layout == truth)[truth > 0].mean() > 0.99 and 0.3 < metadata["lungs_on_their_side"] < 0.7
    assert repairs == ("lung mask: sides mixed up, each voxel got the side it lies on",)


def test_lungs_of_other_values_or_without_any(template, tmp_path):
    layout, repairs, metadata = sided_like(template, tmp_path, np.zeros_like)
    assert not layout.any() and repairs == () and metadata == {}
    layout, *_ = sided_like(template, tmp_path, lambda lungs: np.array([0, 2, 7], np.uint8)[lungs])
    assert 7 in layout                                              # for the writer to refuse


def test_the_published_lungs(shared_data):
    """1 is the patient's left. A-0108 mixes its sides, and so does A-0004."""
    for number, is_sound in (("0026", True), ("0075", True), ("0108", False)):
        mask = SimpleITK.ReadImage(str(shared_data / "covid19_20_lungs" / f"{PREFIX}{number}.nii.gz"))
        layout, repairs, metadata = covid_19_20._with_true_sides(mask)
        assert (metadata["lungs_on_their_side"] > 0.95, repairs == ()) == (is_sound, is_sound)
        if is_sound:
            np.testing.assert_array_equal(array(layout), array(mask))
        left, right = (np.argwhere(array(layout) == side).mean(axis=0)[2] for side in (1, 2))
        assert left > right and layout.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


# ----------------------------------------------------------------------------------------------------------------------
# The published split


def test_the_published_split_is_imported(complete, published, tmp_path, capsys):
    parts = json.loads(published.read_text())
    cases = list(find_cases(tmp_path / "COVID-19-20_v2", complete))
    folds = make_splits(written(cases), complete)
    assert [fold["name"] for fold in folds] == ["sacps_10%", "sacps_20%", "sacps_30%"]
    assert [(len(fold["train"]), len(fold["unlabelled"]), len(fold["val"])) for fold in folds] == \
        [(18, 162, 19), (36, 144, 19), (54, 126, 19)]
    assert set(folds[0]["train"]) < set(folds[1]["train"]) < set(folds[2]["train"])
    for fold, ratio in zip(folds, "123", strict=True):
        assert fold["train"] == sorted(parts[f"train_0.{ratio}_l"]) and fold["val"] == sorted(parts["val"])
    assert {case.id for case in cases if case.role == "test"} == set(parts["test"])
    assert sum(case.role == "labelled" for case in cases) == 199
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "fold sacps_10%: labelled 18 of 18, unlabelled 162 of 162, validation 19 of 19, test 50 of 50"
    assert len(printed) == 3                                        # nothing is lacking
    assert "COVID249_splits.json is the published split" in describe(complete).notes[-1]


def test_a_workbook_gives_the_same(complete, published, tmp_path):
    book = write_workbook(json.loads(published.read_text()), tmp_path / "split.xlsx")
    folds = [make_splits(written(find_cases(tmp_path / "COVID-19-20_v2", options)), options)
             for options in (complete, replace(complete, split_file=book))]
    assert folds[0] == folds[1]


def test_one_ratio(complete, published, tmp_path):
    parts = json.loads(published.read_text())
    (tmp_path / "some.json").write_text(json.dumps({part: parts[part] for part in
                                                    ("test", "val", "train_0.2_l", "train_0.2_u")}))
    options = replace(complete, ratio=20, split_file=tmp_path / "some.json")
    fold, = make_splits(written(find_cases(tmp_path / "COVID-19-20_v2", options)), options)
    assert fold["name"] == "sacps_20%" and len(fold["train"]) == 36 and len(fold["unlabelled"]) == 144
    assert "is the published split" in describe(options).notes[-1]


def test_without_validation_labels_the_published_split_cannot_validate(complete, tmp_path):
    with pytest.raises(UserError, match="no validation case: none of the 19 .*give --validation-labels") as error:
        list(find_cases(tmp_path / "COVID-19-20_v2", replace(complete, validation_labels=None)))
    assert "\n" not in str(error.value)


def test_what_the_download_lacks_of_the_split_is_said(complete, published, tmp_path, capsys):
    parts, source = json.loads(published.read_text()), tmp_path / "COVID-19-20_v2"
    lost, hidden, unlabelled_val, unlabelled_test = (sorted(parts[part])[0] for part in
                                                     ("train_0.1_l", "train_0.3_u", "val", "test"))
    unlabelled_test = next(case for case in parts["test"] if (source / "Validation" / f"{case}_ct.nii.gz").exists())
    for case_id in (lost, hidden):
        for kind in ("ct", "seg"):
            (source / "Train" / f"{case_id}_{kind}.nii.gz").unlink()
    for case_id in (unlabelled_val, unlabelled_test):
        (tmp_path / "labels" / f"{case_id}.nii.gz").unlink()
    cases = by_id(find_cases(source, complete))
    assert cases[unlabelled_val].role == "unlabelled" and unlabelled_test not in cases
    folds = make_splits(written(cases.values()), complete)
    assert [len(fold["train"]) for fold in folds] == [17, 35, 53] and len(folds[0]["val"]) == 18
    assert capsys.readouterr().out.splitlines() == [
        "fold sacps_10%: labelled 17 of 18, unlabelled 161 of 162, validation 18 of 19, test 49 of 50",
        "fold sacps_20%: labelled 35 of 36, unlabelled 143 of 144, validation 18 of 19, test 49 of 50",
        "fold sacps_30%: labelled 53 of 54, unlabelled 125 of 126, validation 18 of 19, test 49 of 50",
        f"labelled cases of the split that were not written: 1 ({lost})",
        f"unlabelled cases of the split that were not written: 1 ({hidden})",
        f"validation cases of the split without a label, in imagesUl now: 1 ({unlabelled_val})",
        f"test cases of the split that were not written: 1 ({unlabelled_test})",
    ]


@pytest.mark.parametrize("change, message", [
    (lambda parts: {part: ["elsewhere_1" + part] for part in parts}, "it is the split of another dataset"),
    (lambda parts: parts | {"val": [*parts["val"], parts["test"][0]]}, "as validation and as test case of one fold"),
    (lambda parts: parts | {"test": [*parts["test"], parts["test"][0]]}, "as test and as test case"),
    (lambda parts: {"train": ["a"], "val": ["b"]}, "lacks test, train_0.1_l"),
    (lambda parts: ["a"], "no named lists"),
])
def test_bad_split_files(complete, published, tmp_path, change, message):
    (tmp_path / "bad.json").write_text(json.dumps(change(json.loads(published.read_text()))))
    with pytest.raises(UserError, match=message) as error:
        list(find_cases(tmp_path / "COVID-19-20_v2", replace(complete, split_file=tmp_path / "bad.json")))
    assert "\n" not in str(error.value)


def test_the_folds_are_written(template, tmp_path, monkeypatch, capsys):
    set_folders(monkeypatch, tmp_path)
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / folder).mkdir()
    numbers = {"test": ["0133", "0180_0"], "val": ["0004", "0490"], "train_0.1_l": ["0014"],
               "train_0.1_u": ["0003", "0044"], "train_0.2_l": ["0014", "0044"], "train_0.2_u": ["0003"]}
    book = write_workbook({part: [PREFIX + number for number in listed] for part, listed in numbers.items()},
                          tmp_path / "split.xlsx")
    arguments = ["convert", "covid-19-20", str(template / "COVID-19-20_v2"), "-d", "522", "--split", "sacps",
                 "--split-file", str(book), "--validation-labels", str(template / "validation_labels")]
    assert main([*arguments, "--ratio", "30"]) == 2
    assert "lacks train_0.3_l, train_0.3_u" in capsys.readouterr().err
    assert main([*arguments, "--ratio", "20"]) == 0
    fold, = json.loads((tmp_path / "nnUNet_preprocessed" / "Dataset522_COVID1920" / "splits_final.json").read_text())
    assert fold == {"name": "sacps_20%", "train": [PREFIX + "0014", PREFIX + "0044"], "unlabelled": [PREFIX + "0003"],
                    "val": [PREFIX + "0004", PREFIX + "0490"]}
    raw = tmp_path / "nnUNet_raw" / "Dataset522_COVID1920"
    assert sorted(file.name for file in (raw / "labelsTs").iterdir()) == [f"{PREFIX}0133.nii.gz",
                                                                         f"{PREFIX}0180_0.nii.gz"]
    assert "differs from the published split" in capsys.readouterr().out


def test_another_file_is_not_called_the_published_split(complete, published, tmp_path):
    parts = json.loads(published.read_text())
    parts["val"], parts["test"] = parts["val"][:-1], [*parts["test"], parts["val"][-1]]
    (tmp_path / "other.json").write_text(json.dumps(parts))
    note = describe(replace(complete, split_file=tmp_path / "other.json")).notes[-1]
    assert note == "the split of other.json differs from the published split in test, val"


# ----------------------------------------------------------------------------------------------------------------------
# Our own split


CASES = [f"volume-covid19-A-{number:04d}" for number in range(1, 239)]
CASES += [f"volume-covid19-A-{number:04d}_{scan}" for number in (300, 301, 302) for scan in (0, 1, 2)] + \
    ["volume-covid19-A-0400_1", "volume-covid19-A-0401_0"]          # 249 scans of 243 patients


def test_our_split_has_the_paper_s_proportions_and_is_nested():
    folds = draw_folds(CASES, RATIOS, seed=1)
    counts = [[sum(part == wanted for part in fold.values()) for wanted in ("train", "unlabelled", "val", "test")]
              for fold in folds.values()]
    assert len(CASES) == 249 and counts == [[18, 162, 19, 50], [36, 144, 19, 50], [54, 126, 19, 50]]
    train = [{case for case, part in fold.items() if part == "train"} for fold in folds.values()]
    assert train[0] < train[1] < train[2]


def test_our_split_keeps_patients_together():
    for seed in range(20):
        for fold in draw_folds(CASES, RATIOS, seed).values():
            parts = {}
            for case, part in fold.items():
                parts.setdefault(patient_of(case), set()).add(part)
            assert all(len(found) == 1 for found in parts.values())


def test_our_split_depends_on_cases_and_seed_alone():
    assert draw_folds(CASES[::-1], ("20",), 3)["sacps_20%"] == draw_folds(CASES, RATIOS, 3)["sacps_20%"]
    assert draw_folds(CASES, RATIOS, 3) != draw_folds(CASES, RATIOS, 4)


def test_too_few_cases_for_our_split():
    with pytest.raises(UserError, match="8 labelled cases are too few for the split of the SA-CPS paper"):
        draw_folds(CASES[:8], RATIOS, 0)


def test_our_split_decides_the_roles_and_survives_a_rejected_case(tmp_path, capsys):
    source = write_names(tmp_path, CASES[:60], CASES[50:60])        # 50 labelled
    options = Options(split="sacps", seed=5)
    cases = list(find_cases(source, options))
    reports = written(cases)
    folds = make_splits(reports, options)
    assert "fold sacps_20%: labelled 7 of 7, unlabelled 29 of 29, validation 4 of 4, test 10 of 10" in \
        capsys.readouterr().out
    test = {case.id for case in cases if case.role == "test"}
    assert len(test) == 10 and sum(case.role == "unlabelled" for case in cases) == 10
    for fold in folds:
        assert len({*fold["train"], *fold["unlabelled"], *fold["val"]}) == 40
        assert not test & {*fold["train"], *fold["unlabelled"], *fold["val"]}
    lost = folds[0]["train"][0]
    fewer = make_splits([report for report in reports if report.id != lost], options)
    for before, after in zip(folds, fewer, strict=True):
        assert set(before["train"]) - set(after["train"]) == {lost}
        assert (before["unlabelled"], before["val"]) == (after["unlabelled"], after["val"])
    assert "our own (seed 5)" in describe(options).notes[-1]


def test_nnunet_s_own_folds_by_default(template):
    assert make_splits(written(find_cases(template / "COVID-19-20_v2", Options())), Options()) == []


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("options, message", [
    ({"split": "mine"}, "no split 'mine'"), ({"split": "sacps", "ratio": 40}, "--ratio 40"),
    ({"split_file": "a.json"}, "belong to --split sacps"), ({"ratio": "10"}, "belong to --split sacps"),
])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def mosmed(source: Path) -> None:
    shutil.rmtree(source)
    (source / "studies" / "CT-0").mkdir(parents=True)
    (source / "studies" / "CT-0" / "study_0001.nii.gz").touch()


def label_twice(source: Path) -> None:
    shutil.copytree(source / "Train", source / "copy" / "Train")


@pytest.mark.parametrize("damage, options, message", [
    (mosmed, {}, "it is not the COVID-19-20 challenge's download"), (label_twice, {}, "would both label"),
    (lambda source: None, {"validation_labels": "empty"}, "empty holds no label of a case"),
    (lambda source: None, {"lungs": "empty"}, "empty holds no lung mask of a case"),
    (lambda source: None, {"lungs": "nowhere"}, "nowhere does not exist"),
    (lambda source: None, {"split": "sacps"}, "8 labelled cases are too few"),
])
def test_a_download_that_cannot_be_used(source, tmp_path, damage, options, message):
    (tmp_path / "empty").mkdir()
    damage(source)
    options = {name: value if name == "split" else tmp_path / value for name, value in options.items()}
    with pytest.raises(UserError, match=message) as error:
        list(find_cases(source, Options(**options)))
    assert "\n" not in str(error.value)


def test_two_lung_masks_of_one_case(template, tmp_path):
    for folder in ("a", "b"):
        shutil.copytree(template / "lungs", tmp_path / "lungs" / folder)
    with pytest.raises(UserError, match=re.escape(f"are both lung masks of {PREFIX}")):
        list(find_cases(template / "COVID-19-20_v2", Options(lungs=tmp_path / "lungs")))


def train(source: Path, number: str, kind: str) -> Path:
    return source / "Train" / f"{PREFIX}{number}_{kind}.nii.gz"


def image_missing(source: Path) -> None:
    train(source, "0014", "ct").unlink()


def label_missing(source: Path) -> None:
    train(source, "0014", "seg").unlink()


def case_twice(source: Path) -> None:
    shutil.copy(train(source, "0014", "ct"), source / "Validation")


def undeclared_value(source: Path) -> None:
    case = drawn("0014")
    write_volume(case.label * 2, case.spacing, train(source, "0014", "seg"))


def other_shape(source: Path) -> None:
    case = drawn("0014")
    write_volume(case.label[:, 1:], case.spacing, train(source, "0014", "seg"))


def other_spacing(source: Path) -> None:
    case = drawn("0014")
    write_volume(case.label, (5.5, *case.spacing[1:]), train(source, "0014", "seg"))


def mirrored(source: Path) -> None:
    """Same shape and spacing, but the label's header says that it goes down from the first slice."""
    label = SimpleITK.ReadImage(str(train(source, "0014", "seg")))
    label.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    SimpleITK.WriteImage(label, str(train(source, "0014", "seg")))


def cut_off(source: Path) -> None:
    file = train(source, "0014", "ct")
    file.write_bytes(file.read_bytes()[:-2000])


@pytest.mark.parametrize("damage, message", [
    (image_missing, f"is a label without an image ({PREFIX}0014_ct.nii.gz)"),
    (label_missing, "has no label beside it (_seg.nii.gz)"), (case_twice, "used twice"),
    (undeclared_value, "undeclared value"), (other_shape, "shape"), (other_spacing, "spacing"), (mirrored, "origin"),
    (cut_off, "truncated"),
])
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, monkeypatch, capsys, damage, message):
    set_folders(monkeypatch, tmp_path)
    (tmp_path / "nnUNet_raw").mkdir()
    damage(source)
    assert main(["convert", "covid-19-20", str(source), "-d", "522"]) == 2
    error, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in error and not list((tmp_path / "nnUNet_raw").glob("Dataset*"))


def test_cases_can_be_read_in_a_worker(template):
    for case in find_cases(template / "COVID-19-20_v2", Options(lungs=template / "lungs")):
        assert pickle.loads(pickle.dumps(case)).id == case.id


def test_help_names_licence_citation_and_tree():
    assert all(word in covid_19_20.__doc__ for word in (
        "CC BY 4.0", "102605", "Train/volume-covid19-A-0003_seg.nii.gz", "Validation/", "train_0.1_l"))
