import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_synth.cli import main
from nnunet_synth.dataset_conversion import mosmed
from nnunet_synth.dataset_conversion.case import Case
from nnunet_synth.dataset_conversion.chest_orientation import DECISIVE
from nnunet_synth.dataset_conversion.mosmed import Options, describe, find_cases, make_splits
from nnunet_synth.dataset_conversion.writer import CaseReport, write_dataset
from nnunet_synth.errors import UserError
from tests.conftest import set_folders
from tests.makers.covid_19_20 import write_workbook
from tests.makers.mosmed import (
    MASKED,
    RATERS,
    STUDIES,
    TURNED,
    mask_file,
    registry_rows,
    seen_by,
    study_file,
    write_names,
    write_real_masks,
    write_registry,
    write_test_names,
    write_test_tree,
    write_tree,
)
from tests.makers.volumes import phantom, write_volume

REAL_MASKS = [f"study_{number:04d}_mask.nii.gz" for number in range(255, 275)]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mosmed")
    write_tree(root)
    write_test_tree(root)
    return root


@pytest.fixture
def source(template, tmp_path) -> Path:
    """A copy to damage; the test volumes are in `template`."""
    return shutil.copytree(template / "COVID19_1110", tmp_path / "COVID19_1110")


@pytest.fixture
def published(shared_data) -> Path:
    return shared_data / "splits" / "MOS1000_splits.json"


def by_id(cases) -> dict[str, Case]:
    return {case.id: case for case in cases}


def array(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image)


def written(cases) -> list[CaseReport]:
    """What `make_splits` would be given if every case could be read."""
    return [CaseReport(case.id, case.role, "written", has_label=len(case.sources) > 1, metadata=dict(case.metadata))
            for case in cases]


# ----------------------------------------------------------------------------------------------------------------------


def test_roles_and_categories(template):
    cases = by_id(find_cases(template / "COVID19_1110", Options()))
    assert cases.keys() == {f"study_{number:04d}" for number in STUDIES}
    for number, category in STUDIES.items():
        case = cases[f"study_{number:04d}"]
        assert case.role == ("labelled" if number in MASKED else "unlabelled")
        assert case.metadata["category"] == category


@pytest.mark.parametrize("archive", [True, False])
def test_the_parent_folder_and_an_archive_give_the_same(template, source, archive):
    expected = [(case.id, case.role, case.metadata) for case in find_cases(source, Options())]
    given = source.parent
    if archive:
        given = Path(shutil.make_archive(str(source.parent / "download"), "zip", source.parent, source.name))
        shutil.rmtree(source)
    assert [(case.id, case.role, case.metadata) for case in find_cases(given, Options())] == expected


def test_without_a_registry_the_folders_tell_the_category(source):
    (source / "dataset_registry.xlsx").unlink()
    cases = by_id(find_cases(source, Options()))
    assert {case.metadata["category"] for case in cases.values()} == set(STUDIES.values())


def test_registry_and_folder_disagree(source):
    rows = [(number, "CT-2" if number == 255 else category, *files) for number, category, *files in registry_rows()]
    write_registry(source, rows)
    cases = by_id(find_cases(source, Options()))
    metadata = cases["study_0255"].metadata
    assert metadata["category"] == "CT-2" and metadata["category_of_folder"] == "CT-1"
    assert "category CT-2 of the registry kept, the folder is CT-1" in cases["study_0255"].read().repairs
    assert "category_of_folder" not in cases["study_0256"].metadata


def test_what_is_read_is_the_phantom_in_lps(template):
    content = by_id(find_cases(template / "COVID19_1110", Options()))["study_0255"].read()
    case = phantom(list(STUDIES).index(255))
    np.testing.assert_array_equal(array(content.images[0]), case.image)
    np.testing.assert_array_equal(array(content.label), case.label)
    assert content.images[0].GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert content.repairs == ("turned from LAS to LPS",)


def test_the_dataset_is_written(template, tmp_path):
    options = Options(test_source=template)
    folder = write_dataset(find_cases(template / "COVID19_1110", options), describe(options),
                           tmp_path / "Dataset521_M").folder
    assert {part: len(list((folder / part).iterdir())) for part in
            ("imagesTr", "labelsTr", "imagesUl", "imagesTs", "labelsTs")} == \
        {"imagesTr": 6, "labelsTr": 6, "imagesUl": 6, "imagesTs": 3, "labelsTs": 3}
    dataset_json = json.loads((folder / "dataset.json").read_text())
    assert "CC BY-NC-ND 3.0" in dataset_json["licence"] and dataset_json["channel_names"] == {"0": "CT"}
    assert any("8 mm" in note for note in dataset_json["nnunet_synth"]["notes"])


# ----------------------------------------------------------------------------------------------------------------------
# Real masks


def assert_unchanged(published: Path, case: Case) -> None:
    mask, content = SimpleITK.ReadImage(str(published)), case.read()
    label, image = content.label, content.images[0]
    assert (array(label) > 0).sum() == (array(mask) > 0).sum() > 0 and set(np.unique(array(label))) == {0, 1}
    # The affine: the same corners of the grid, and the index of each lesion voxel leads to the same point.
    assert image.GetOrigin() == label.GetOrigin() and image.GetDirection() == label.GetDirection()
    points = [mask.TransformIndexToPhysicalPoint(index[::-1].tolist()) for index in np.argwhere(array(mask))[::97]]
    indices = [label.TransformPhysicalPointToIndex(point) for point in points]
    assert all(label[index] == 1 for index in indices)
    np.testing.assert_allclose([label.TransformIndexToPhysicalPoint(index) for index in indices], points, atol=1e-4)
    # The maker's CT tells every voxel of the published grid apart: x + 2 y + 3 z - 1024.
    for point in points[:50]:
        x, y, z = mask.TransformPhysicalPointToIndex(point)
        assert image[image.TransformPhysicalPointToIndex(point)] == x + 2 * y + 3 * z - 1024


def test_real_masks_stay_as_they_are(shared_data, tmp_path):
    names = REAL_MASKS[:2]
    source = write_real_masks(tmp_path, [shared_data / "mosmed" / name for name in names])
    cases = by_id(find_cases(source, Options()))
    for name in names:
        assert_unchanged(shared_data / "mosmed" / name, cases[name.removesuffix("_mask.nii.gz")])


@pytest.mark.slow
def test_all_real_masks_are_converted_unchanged(shared_data, tmp_path):
    """Through the writer: voxel counts, grid and every lesion voxel's place of the 20 files that we have."""
    files = [shared_data / "mosmed" / name for name in REAL_MASKS]
    source = write_real_masks(tmp_path, files)
    shutil.copy(shared_data / "mosmed" / "dataset_registry.xlsx", source)
    report = write_dataset(find_cases(source, Options()), describe(Options()), tmp_path / "Dataset521_M",
                           allow_rejected=True)
    assert len(report.select("labelled", "repaired")) == 20
    for file in files:
        mask = SimpleITK.ReadImage(str(file))
        label = SimpleITK.ReadImage(str(report.folder / "labelsTr" / file.name.replace("_mask", "")))
        resampled = SimpleITK.Resample(label, mask, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
        np.testing.assert_array_equal(array(resampled), array(mask))
        assert array(label).sum() == array(mask).sum() and sorted(label.GetSize()) == sorted(mask.GetSize())
    rejected = report.rejected
    assert len(rejected) == 1110 - 20 and sum(case.role == "labelled" for case in rejected) == 50 - 20
    assert "is in the registry but not in the download" in rejected[0].reason


def test_the_real_registry(shared_data, tmp_path):
    shutil.copy(shared_data / "mosmed" / "dataset_registry.xlsx", tmp_path)
    source = write_names(tmp_path)
    shutil.move(tmp_path / "dataset_registry.xlsx", source)
    cases = list(find_cases(source, Options()))
    categories = [case.metadata["category"] for case in cases]
    assert [categories.count(f"CT-{index}") for index in range(5)] == [254, 684, 125, 45, 2]
    assert not any("category_of_folder" in case.metadata for case in cases)
    assert sum(case.role == "labelled" for case in cases) == 50


# ----------------------------------------------------------------------------------------------------------------------
# The test volumes


def test_the_test_source_may_be_the_folder_its_parent_an_archive_or_lie_in_source(template, source, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "test"), "zip", template, "test")
    for options in (Options(test_source=template / "test"), Options(test_source=template),
                    Options(test_source=archive)):
        assert [case.id for case in find_cases(source, options) if case.role == "test"] == sorted(RATERS)
    assert not any(case.role == "test" for case in find_cases(source, Options()))
    shutil.copytree(template / "test", source / "test")
    cases = list(find_cases(source, Options()))
    assert [case.id for case in cases if case.role == "test"] == sorted(RATERS)
    assert len(cases) == len(STUDIES) + len(RATERS)                 # nothing of the other kinds


def test_raters_are_merged_by_majority_and_compared(template):
    cases = by_id(find_cases(template / "COVID19_1110", Options(test_source=template)))
    for index, (case_id, raters) in enumerate(RATERS.items()):
        content, truth = cases[case_id].read(), phantom(index).label
        seen = [seen_by(number, truth) for number in range(len(raters))] or [truth]
        votes, merged = np.sum(seen, axis=0), array(content.label)
        np.testing.assert_array_equal(merged[2 * votes > len(seen)], 1)
        np.testing.assert_array_equal(merged[2 * votes == len(seen)], 1)            # ties are lesion
        np.testing.assert_array_equal(merged[2 * votes < len(seen)], 0)
        assert content.metadata["raters"] == len(seen)
        np.testing.assert_array_equal(array(content.images[0]), phantom(index).image)
    dice = content.metadata["rater_dice"]                           # of the case with three raters
    anna, boris, _ = seen
    assert dice["anna boris"] == pytest.approx(2 * (anna & boris).sum() / (anna.sum() + boris.sum()), abs=1e-4)
    assert dice.keys() == {"anna boris", "anna vera", "boris vera"}
    assert content.metadata["rater_dice_mean"] == pytest.approx(np.mean(list(dice.values())), abs=1e-4)


def test_a_test_volume_that_contradicts_its_header_is_turned(template):
    cases = by_id(find_cases(template / "COVID19_1110", Options(test_source=template)))
    for case_id in RATERS:
        content = cases[case_id].read()
        assert content.repairs == (("turned from RAS to LPS", "rows and columns exchanged against the header",
                                    "head and feet reversed against the header",
                                    "front and back reversed against the header",
                                    "left and right reversed against the header") if case_id == TURNED else ())
        assert all(abs(content.metadata[f"evidence_{axis}"]) > DECISIVE for axis in
                   ("feet_to_head", "front_to_back", "right_to_left"))
        np.testing.assert_allclose(content.label.GetSpacing(), content.images[0].GetSpacing())


def test_raters_who_see_nothing(template, tmp_path):
    shutil.copytree(template / "test", tmp_path / "test")
    case = phantom(1)
    for rater in ("anna", "boris"):
        write_volume(np.zeros_like(case.label), case.spacing,
                     tmp_path / "test" / "covid" / "masks" / "1.2.840.113619.2.379.20" / f"{rater}.nii.gz")
    cases = by_id(find_cases(template / "COVID19_1110", Options(test_source=tmp_path)))
    content = cases["1.2.840.113619.2.379.20"].read()
    assert array(content.label).sum() == 0
    assert content.metadata["rater_dice"] == {"anna boris": None}                   # NaN is no JSON
    assert "rater_dice_mean" not in content.metadata


@pytest.mark.parametrize("change, message", [
    (lambda label, spacing: (label[:-1], spacing), "anna.nii.gz differs in shape"),
    (lambda label, spacing: (label, (*spacing[:2], 9.0)), "anna.nii.gz differs in shape, spacing"),
    (lambda label, spacing: (label * 3, spacing), "holds other values than 0 and 1"),
])
def test_raters_on_other_grids_or_with_other_values(template, tmp_path, change, message):
    shutil.copytree(template / "test", tmp_path / "test")
    case_id = "1.2.840.113619.2.379.20"
    folder = tmp_path / "test" / "covid" / "masks" / case_id
    (folder / "boris.nii.gz").rename(folder / "aaron.nii.gz")       # the one that anna's is compared with
    write_volume(*change(phantom(1).label, phantom(1).spacing), folder / "anna.nii.gz")
    with pytest.raises(UserError, match=message):
        by_id(find_cases(template / "COVID19_1110", Options(test_source=tmp_path)))[case_id].read()


@pytest.mark.parametrize("kind, other", [("images", "image"), ("masks", "mask")])
def test_half_a_test_case_is_rejected(template, tmp_path, kind, other):
    shutil.copytree(template / "test", tmp_path / "test")
    (tmp_path / "test" / "covid" / kind / "1.2.840.113619.2.379.10.nii.gz").unlink()
    case = by_id(find_cases(template / "COVID19_1110", Options(test_source=tmp_path)))["1.2.840.113619.2.379.10"]
    with pytest.raises(UserError, match=f"has no {other} in covid/{kind}"):
        case.read()
    assert case.role == "test"


def test_two_masks_for_one_test_case(template, tmp_path):
    shutil.copytree(template / "test", tmp_path / "test")
    masks = tmp_path / "test" / "covid" / "masks"
    shutil.copy(masks / "1.2.840.113619.2.379.10.nii.gz", masks / "1.2.840.113619.2.379.20.nii.gz")
    with pytest.raises(UserError, match="are masks of one test case"):
        list(find_cases(template / "COVID19_1110", Options(test_source=tmp_path)))


# ----------------------------------------------------------------------------------------------------------------------
# The split of the SA-CPS paper


def names_of(published: Path, suffix: str) -> list[str]:
    return [case.removesuffix("_rot") + suffix for case in json.loads(published.read_text())["test"]]


@pytest.mark.parametrize("suffix", ["", "_rot"])
def test_the_built_in_split_is_the_published_one(published, tmp_path, capsys, suffix):
    source, test = write_names(tmp_path), write_test_names(tmp_path, names_of(published, suffix))
    entries = []
    for file in (None, published, write_workbook(json.loads(published.read_text()), tmp_path / "split.xlsx")):
        options = Options(test_source=test, split="sacps", split_file=file)
        cases = written(find_cases(source, options))
        entries.append(make_splits(cases, options))
        printed = capsys.readouterr().out
        assert "fold sacps: labelled 40 of 40, unlabelled 1,060 of 1,060, validation 10 of 10" in printed
        assert "the 32 test cases are those of the SA-CPS paper" in printed
        assert "not written" not in printed and "without a label" not in printed
        assert sum(case.role == "unlabelled" for case in cases) == 1060
        assert sum(case.role == "test" for case in cases) == 32
        assert {case.metadata["sacps"] for case in cases if case.role == "test"} == {"test"}
    entry, = entries[0]
    assert entry == {"name": "sacps", "train": [f"study_{number:04d}" for number in range(255, 295)],
                     "val": [f"study_{number:04d}" for number in range(295, 305)], "unlabelled": []}
    assert entries == [[entry]] * 3
    assert describe(options).notes[-1].startswith("the split of split.xlsx is the published split")


def test_what_a_partial_download_lacks_is_said(template, capsys):
    options = Options(split="sacps")
    fold, = make_splits(written(find_cases(template / "COVID19_1110", options)), options)
    assert fold["train"] == ["study_0255", "study_0256", "study_0257", "study_0258"]
    assert fold["val"] == ["study_0295", "study_0296"]
    printed = capsys.readouterr().out
    assert "labelled 4 of 40, unlabelled 6 of 1,060, validation 2 of 10" in printed
    assert "labelled cases of the split that were not written: 36 (study_0259," in printed
    assert "there are no test cases: --test-source takes the 32" in printed
    make_splits(written(find_cases(template / "COVID19_1110", Options(test_source=template, split="sacps"))), options)
    assert "the 3 test cases are not the 32 of the SA-CPS paper" in capsys.readouterr().out


def test_a_check_says_it_too(template, capsys):
    assert main(["convert", "mosmed", str(template / "COVID19_1110"), "--check", "--split", "sacps"]) == 0
    assert "labelled cases of the split that were not written: 36 (study_0259," in capsys.readouterr().out


def test_a_file_may_hide_labels_and_name_test_studies(template, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"train_label": ["study_0255"], "train_unlabel": ["study_0256", "study_0001"],
                                "val": ["study_0295"], "test": ["study_0257", "study_0305"]}))
    options = Options(split="sacps", split_file=file)
    cases = by_id(find_cases(template / "COVID19_1110", options))
    fold, = make_splits(written(cases.values()), options)
    assert fold == {"name": "sacps", "train": ["study_0255"], "unlabelled": ["study_0256"], "val": ["study_0295"]}
    assert cases["study_0257"].role == "test" and cases["study_0257"].read().label is not None
    assert "study_0305" not in cases                # a test case without a mask: not into the pool
    assert "differs from the published split" in describe(options).notes[-1]


def test_the_fold_is_written(template, tmp_path, monkeypatch, capsys):
    set_folders(monkeypatch, tmp_path)
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / folder).mkdir()
    assert main(["convert", "mosmed", str(template / "COVID19_1110"), "-d", "521", "--split", "sacps"]) == 0
    fold, = json.loads((tmp_path / "nnUNet_preprocessed" / "Dataset521_MosMed" / "splits_final.json").read_text())
    assert fold["name"] == "sacps" and len(fold["train"]) == 4 and len(fold["val"]) == 2
    assert "validation 2 of 10" in capsys.readouterr().out
    metadata = (tmp_path / "nnUNet_raw" / "Dataset521_MosMed" / "metadata.csv").read_text().splitlines()
    assert "category" in metadata[0] and any(line.startswith("study_0939") and "CT-2" in line for line in metadata)


def test_a_rejected_case_leaves_the_fold(template):
    options = Options(split="sacps")
    cases = [case for case in written(find_cases(template / "COVID19_1110", options)) if case.id != "study_0256"]
    assert make_splits(cases, options)[0]["train"] == ["study_0255", "study_0257", "study_0258"]
    assert make_splits(cases, Options()) == []


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


def covid_19_20(source: Path) -> None:
    shutil.rmtree(source)
    (source / "Train").mkdir(parents=True)
    (source / "Train" / "volume-covid19-A-0003_ct.nii.gz").touch()


def registry_without_column(source: Path) -> None:
    write_registry(source, [(1, "CT-0", "a")], ("study_id", "category", "study_file"))


def registry_with_a_study_twice(source: Path) -> None:
    write_registry(source, [*registry_rows(), registry_rows()[0]])


def registry_of_names(source: Path) -> None:
    write_registry(source, [("Ivanov", "CT-0", "a", None)])


def damaged_registry(source: Path) -> None:
    (source / "dataset_registry.xlsx").write_bytes(b"PK\x03\x04 cut off")


def two_masks(source: Path) -> None:
    shutil.copytree(source / "masks", source / "more" / "masks")


def no_validation(source: Path) -> None:
    for number in (295, 296):
        mask_file(source, number).unlink()
    (source / "dataset_registry.xlsx").unlink()


@pytest.mark.parametrize("damage, options, message", [
    (covid_19_20, {}, "it is not MosMedData"), (damaged_registry, {}, "dataset_registry.xlsx is no Excel workbook"),
    (registry_without_column, {}, "no sheet with the columns study_id, category, study_file, mask_file"),
    (registry_with_a_study_twice, {}, "lists study_id 1 twice"), (registry_of_names, {}, "'Ivanov' is not a number"),
    (two_masks, {}, "would both label study_0255"),
    (no_validation, {"split": "sacps"}, "sacps has no validation case: none of the 10 ids"),
    (lambda source: None, {"test_source": "."}, "holds no covid/images"),
])
def test_a_download_that_cannot_be_used(source, tmp_path, monkeypatch, damage, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    if "test_source" in options:
        options = {"test_source": tmp_path / "empty"}
    damage(source)
    with pytest.raises(UserError, match=message) as error:
        list(find_cases(source, Options(**options)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options, message", [
    ({"split": "mine"}, "no split 'mine'"), ({"split_file": "a.json"}, "belongs to --split sacps"),
])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def mask_without_study(source: Path) -> None:
    study_file(source, 255).unlink()


def row_without_file(source: Path) -> None:
    study_file(source, 255).unlink()
    mask_file(source, 255).unlink()


def study_without_its_mask(source: Path) -> None:
    mask_file(source, 255).unlink()


def study_twice(source: Path) -> None:
    (source / "studies" / "CT-3").mkdir(exist_ok=True)
    shutil.copy(study_file(source, 255), source / "studies" / "CT-3")


def undeclared_value(source: Path) -> None:
    case = phantom(2)
    write_volume(case.label.astype(np.int16) * 2, case.spacing, mask_file(source, 255), "LAS")


def other_shape(source: Path) -> None:
    case = phantom(2)
    write_volume(case.label[:-1], case.spacing, mask_file(source, 255), "LAS")


def other_spacing(source: Path) -> None:
    case = phantom(2)
    write_volume(case.label, (8.5, *case.spacing[1:]), mask_file(source, 255), "LAS")


def cut_off(source: Path) -> None:
    file = study_file(source, 255)
    file.write_bytes(file.read_bytes()[:-2000])


@pytest.mark.parametrize("damage, message", [
    (mask_without_study, "study_0255_mask.nii.gz is a mask without a study"),
    (row_without_file, "study_0255 is in the registry but not in the download"),
    (study_without_its_mask, "the mask of study_0255 is in the registry but not in the download"),
    (study_twice, "used twice"), (undeclared_value, "undeclared value"), (other_shape, "shape"),
    (other_spacing, "spacing"), (cut_off, "truncated"),
])
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, monkeypatch, capsys, damage, message):
    set_folders(monkeypatch, tmp_path)
    (tmp_path / "nnUNet_raw").mkdir()
    damage(source)
    assert main(["convert", "mosmed", str(source), "-d", "521"]) == 2
    error, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in error and not list((tmp_path / "nnUNet_raw").glob("Dataset*"))


def test_a_missing_unlabelled_study_is_reported_but_no_obstacle(source, tmp_path):
    study_file(source, 1).unlink()
    report = write_dataset(find_cases(source, Options()), describe(Options()), tmp_path / "Dataset521_M")
    rejected, = report.rejected
    assert rejected.id == "study_0001" and rejected.role == "unlabelled" and "in the registry" in rejected.reason


def test_cases_can_be_read_in_a_worker(template):
    for case in find_cases(template / "COVID19_1110", Options(test_source=template)):
        assert pickle.loads(pickle.dumps(case)).id == case.id


def test_help_names_licence_citation_and_tree():
    text = mosmed.__doc__
    assert all(word in text for word in ("CC BY-NC-ND 3.0", "arXiv:2005.06465", "studies/CT-0/study_0001.nii.gz",
                                         "masks/study_0255_mask.nii.gz", "test/covid/masks/ID/RATER.nii.gz"))
