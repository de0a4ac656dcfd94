import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_synth.cli import main
from nnunet_synth.commands.convert import _found, convert
from nnunet_synth.dataset_conversion.converter import load_converter
from nnunet_synth.errors import UserError
from tests.conftest import set_folders
from tests.makers.covid_semiseg import NUM_LABELLED, NUM_TEST, SLICES_OF, write_tree


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny release, and nnU-Net's three folders beside it."""
    set_folders(monkeypatch, tmp_path)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
    return write_tree(tmp_path / "source")


def left_in(tmp_path: Path) -> list[str]:
    """What looks like a dataset: finished cases wait in a hidden folder for the same command."""
    return [path.name for path in (tmp_path / "nnUNet_raw").iterdir() if not path.name.startswith(".")]


def test_convert_writes_a_dataset_that_nnunet_accepts(source, tmp_path, capsys):
    assert main(["convert", "covid-semiseg", str(source), "-d", "520"]) == 0
    printed = capsys.readouterr().out
    assert "pixels" in printed and "non-commercial" in printed and "Fan et al." in printed
    assert "nnUNetv2_plan_and_preprocess -d 520" in printed and "4 x mirrored left to right" in printed

    folder = tmp_path / "nnUNet_raw" / "Dataset520_COVIDSemiSeg"
    assert len(list((folder / "imagesTr").iterdir())) == len(list((folder / "labelsTr").iterdir())) == NUM_LABELLED
    assert len(list((folder / "imagesUl").iterdir())) == sum(SLICES_OF.values())
    assert len(list((folder / "imagesTs").iterdir())) == NUM_TEST
    assert not (folder / "labelsTs").exists() and not (folder / "labelsUl").exists()

    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "gray"}
    assert "Inf-Net" in description["citation"] and "non-commercial" in description["licence"]
    assert any("pixels" in note for note in description["nnunet_synth"]["notes"])

    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    verify_dataset_integrity(str(folder), num_processes=1)


def test_what_is_written_equals_the_source_after_the_documented_turn(source, tmp_path):
    convert("covid-semiseg", source, 520, task="multiclass", name="Other")
    folder = tmp_path / "nnUNet_raw" / "Dataset520_Other"
    train = source / "TrainingSet"
    for written in (folder / "imagesTr").iterdir():
        published = train / "MultiClassInfection-Train" / "Imgs" / f"{written.name[:-9]}.jpg"
        np.testing.assert_array_equal(np.asarray(Image.open(written)), np.asarray(Image.open(published)))
        mask = np.asarray(Image.open(folder / "labelsTr" / written.name.replace("_0000", "")))
        colours = np.asarray(Image.open(train / "MultiClassInfection-Train" / "GT" / f"{written.name[:-9]}.png"))
        np.testing.assert_array_equal(mask, (colours[..., 0] == 128) + 2 * (colours[..., 1] == 128))
    for written in (folder / "imagesUl").iterdir():
        published = train / "LungInfection-Train" / "Pseudo-label" / "Imgs" / f"{written.name[:-9]}.jpg"
        expected = np.asarray(Image.open(published))
        if "coronacases" in written.name:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(np.asarray(Image.open(written)), expected)


def test_check_only_reports(source, tmp_path, capsys):
    assert main(["convert", "covid-semiseg", str(source), "-d", "520", "--check"]) == 0
    assert "nothing was written" in capsys.readouterr().out and left_in(tmp_path) == []


def doctor_label(source: Path, kind: str, name: str) -> Path:
    return source / "TrainingSet" / "LungInfection-Train" / "Doctor-label" / kind / name


def truncate(source):
    file = doctor_label(source, "Imgs", "1.jpg")
    file.write_bytes(file.read_bytes()[:-400])


def empty(source):
    doctor_label(source, "Imgs", "1.jpg").write_bytes(b"")


def text(source):
    doctor_label(source, "Imgs", "1.jpg").write_text("not an image")


def mask_missing(source):
    doctor_label(source, "GT", "1.png").unlink()


def mask_truncated(source):
    file = doctor_label(source, "GT", "1.png")
    file.write_bytes(file.read_bytes()[:60])


def other_shape(source):
    shutil.copy(doctor_label(source, "GT", "2.png"), doctor_label(source, "GT", "1.png"))


def all_masks_missing(source):
    shutil.rmtree(doctor_label(source, "GT", ""))


def no_images(source):
    shutil.rmtree(doctor_label(source, "Imgs", ""))


def other_dataset(source):
    shutil.rmtree(source / "TrainingSet")


def twice(source):
    shutil.copy(doctor_label(source, "Imgs", "1.jpg"), source / "TestingSet" / "LungInfection-Test" / "Imgs" / "1.jpg")


@pytest.mark.parametrize("damage, message", [
    (truncate, "1.jpg is truncated or corrupt"), (empty, "1.jpg is empty"), (text, "1.jpg is truncated or corrupt"),
    (mask_missing, "mask of 1.jpg is missing"), (mask_truncated, "1.png is truncated or corrupt"),
    (other_shape, "its image 1.jpg is"), (all_masks_missing, "masks of the labelled slices are missing"),
    (no_images, "holds no images"), (other_dataset, "not the COVID-SemiSeg release"), (twice, "used twice"),
])
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, capsys, damage, message):
    damage(source)
    assert main(["convert", "covid-semiseg", str(source), "-d", "520"]) == 2
    error, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in error and error.startswith("nnunet_synth convert: error: ")
    assert left_in(tmp_path) == []


def test_unknown_mask_colour(source, tmp_path, capsys):
    file = source / "TrainingSet" / "MultiClassInfection-Train" / "GT" / "1.png"
    mask = np.array(Image.open(file))
    mask[:9, :9] = (0, 0, 128)
    Image.fromarray(mask).save(file)
    assert main(["convert", "covid-semiseg", str(source), "-d", "520", "--task", "multiclass"]) == 2
    assert "(0, 0, 128)" in capsys.readouterr().err and left_in(tmp_path) == []
    assert main(["convert", "covid-semiseg", str(source), "-d", "520"]) == 0            # not read for this task


def test_rejected_cases_can_be_allowed_and_a_bad_unlabelled_slice_is_only_left_out(source, tmp_path, capsys):
    truncate(source)
    pool = source / "TrainingSet" / "LungInfection-Train" / "Pseudo-label" / "Imgs"
    next(pool.glob("*coronacases*_2.jpg")).write_bytes(b"")
    assert main(["convert", "covid-semiseg", str(source), "-d", "520", "--allow-rejected"]) == 0
    assert "rejected: labelled 1: " in capsys.readouterr().out
    report = json.loads((tmp_path / "nnUNet_raw" / "Dataset520_COVIDSemiSeg" / "conversion_report.json").read_text())
    assert sorted((case["role"], case["status"]) for case in report["cases"] if case["status"] == "rejected") == \
        [("labelled", "rejected"), ("unlabelled", "rejected")]
    assert all(len(digest) == 64 for case in report["cases"] for digest in case["sources"].values())


@pytest.mark.parametrize("folder", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_in_use_is_refused(source, tmp_path, capsys, folder):
    (tmp_path / folder / "Dataset520_Mine").mkdir()
    assert main(["convert", "covid-semiseg", str(source), "-d", "520"]) == 2
    assert "Dataset520_Mine exists; choose another -d or remove it" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (dict(source="/nowhere"), "does not exist"), (dict(task="nodules"), "no task 'nodules'"),
    (dict(name="a b"), "letters and digits"), (dict(dataset_id=1000), "1 to 999"), (dict(jobs=0), "--jobs 0"),
    (dict(source_type="mosmod"), "unknown dataset"),
])
def test_bad_arguments(source, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert(**{"source_type": "covid-semiseg", "source": source, "dataset_id": 520, **options})
    assert left_in(tmp_path) == []


def test_unset_environment(source, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        convert("covid-semiseg", source, 520)


def test_every_converter_is_described():
    for name in _found():
        converter = load_converter(name)
        description = converter.describe(converter.Options())
        assert description.citation and description.licence and description.labels["background"] == 0
