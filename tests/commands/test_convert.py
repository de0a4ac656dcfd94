import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_synth.cli import main
from nnunet_synth.commands.convert import convert
from nnunet_synth.dataset_conversion import covid_semiseg
from nnunet_synth.dataset_conversion.converter import CONVERTERS, load_converter
from nnunet_synth.errors import UserError
from nnunet_synth.verbs import build_parser
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


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_unset_environment(source, monkeypatch, variable):
    monkeypatch.delenv(variable)
    with pytest.raises(UserError, match=f"{variable} is not set"):
        convert("covid-semiseg", source, 520)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_keeps_the_contract(name):
    converter = load_converter(name)
    description = converter.describe(converter.Options())
    assert description.citation and description.licence and description.labels["background"] == 0
    assert converter.EXAMPLE.startswith(f"nnunet_synth convert {name} ") and "\n" not in converter.HELP
    # Every option can be given on the command line, has the same default there, and is none of those that all have.
    args = vars(build_parser().parse_args(["convert", name, "SOURCE", "-d", "520"]))
    common = {"verb", "run", "source_type", "source", "dataset_id", "name", "check", "allow_rejected", "jobs",
              "add_to_pool"}
    own = {field.name: getattr(converter.Options(), field.name) for field in fields(converter.Options)}
    assert set(args) - common == set(own) and not common & set(own)
    assert converter.Options(**{option: args[option] for option in own}) == converter.Options()
    build_parser().parse_args(shlex.split(converter.EXAMPLE)[1:])


@pytest.mark.parametrize("name", CONVERTERS)
def test_help_of_a_converter_is_its_documentation(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", name, "--help"])
    printed = capsys.readouterr().out
    converter = load_converter(name)
    assert ended.value.code == 0 and converter.__doc__.strip() in printed and converter.EXAMPLE in printed
    assert "SOURCE" in printed and "--add-to-pool ID" in printed
    for word in ("http", "cite", "licence"):            # of one's own scans, one knows oneself
        assert name == "folder" or word in printed.lower(), word


def test_help_lists_all_converters(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {load_converter(name).HELP}" in printed for name in CONVERTERS)


def test_the_parser_imports_nothing_heavy():
    program = ("import sys\nfrom nnunet_synth.verbs import build_parser\n"
               "build_parser().parse_args(['convert', 'mosmed', 'x', '-d', '1'])\n"
               "print(*sorted({'torch', 'nnunetv2', 'SimpleITK', 'pandas', 'scipy', 'skimage'} & set(sys.modules)))")
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.split() == []


def test_an_unknown_option_is_named_with_the_known_ones(source, tmp_path):
    with pytest.raises(UserError, match="covid-semiseg has no option 'tusk'; it has: task"):
        convert("covid-semiseg", source, 520, tusk="infection")


@pytest.mark.parametrize("line, message", [
    (["-d", "520", "--add-to-pool", "521"], "not allowed with argument"), (["-d", "x"], "must be a whole number"),
    (["--name", "New", "--add-to-pool", "521"], "--name is that of a new dataset"),
    (["-d", "520", "--tusk"], "unrecognized arguments: --tusk"), ([], "-d ID of the new dataset is missing"),
    (["-d", "520", "--task", "nodules"], "invalid choice: 'nodules'")])
def test_bad_command_lines(source, capsys, line, message):
    try:
        status = main(["convert", "covid-semiseg", str(source), *line])
    except SystemExit as ended:
        status = ended.code
    assert status == 2 and message in capsys.readouterr().err


def test_check_needs_no_id(source, tmp_path, capsys):
    assert main(["convert", "covid-semiseg", str(source), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "nothing was written" in printed and left_in(tmp_path) == []


# -- archives, the pool, folds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["zip", "tar", "folder of a zip"])
def test_archives_give_the_same_dataset(source, tmp_path, shape):
    convert("covid-semiseg", source, 520)
    kind = "tar" if shape == "tar" else "zip"
    (tmp_path / "packed").mkdir()
    archive = Path(shutil.make_archive(str(tmp_path / "packed" / "COVID-SemiSeg"), kind, source.parent, source.name))
    convert("covid-semiseg", archive if shape in ("zip", "tar") else archive.parent, 521)
    one, other = (tmp_path / "nnUNet_raw" / f"Dataset{number}_COVIDSemiSeg" for number in (520, 521))
    names = sorted(path.relative_to(one) for path in one.rglob("*.png"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*.png"))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_add_to_pool(source, tmp_path, capsys):
    convert("covid-semiseg", source, 520)
    labelled = source / "TrainingSet" / "LungInfection-Train" / "Doctor-label"
    for folder in (labelled / "Imgs", labelled / "GT", source / "TestingSet" / "LungInfection-Test" / "Imgs",
                   source / "TrainingSet" / "LungInfection-Train" / "Pseudo-label" / "Imgs"):
        for file in folder.iterdir():
            file.rename(file.with_name(f"new_{file.name}"))
    assert main(["convert", "covid-semiseg", str(source), "--add-to-pool", "520"]) == 0
    assert "next: nnunet_synth preprocess 520 CONFIG" in capsys.readouterr().out
    folder = tmp_path / "nnUNet_raw" / "Dataset520_COVIDSemiSeg"
    number, copies = sum(SLICES_OF.values()), NUM_LABELLED + NUM_TEST
    assert len(list((folder / "imagesUl").glob("new_*"))) == number
    report = json.loads((folder / "conversion_report_covid-semiseg.json").read_text())
    counts = report["counts"]["unlabelled"]
    assert counts["written"] + counts.get("repaired", 0) == number and counts["rejected"] == copies
    assert all("holds the same voxels as images" in case["reason"] for case in report["cases"]
               if case["status"] == "rejected")
    assert main(["convert", "covid-semiseg", str(source), "--add-to-pool", "520"]) == 2
    assert f"none of {copies} scans can be used" in capsys.readouterr().err
    assert main(["convert", "covid-semiseg", str(source), "--add-to-pool", "77"]) == 2
    assert "dataset 77 must exist" in capsys.readouterr().err


FOLDS = [{"name": "a", "train": ["0", "1"], "val": ["2"]}, {"train": ["2"], "val": ["0"]}]


@pytest.fixture
def with_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covid_semiseg, "make_splits", lambda cases, options: FOLDS)


def test_folds_of_the_source(source, tmp_path, capsys, with_folds):
    assert main(["convert", "covid-semiseg", str(source), "-d", "520"]) == 0
    folds = tmp_path / "nnUNet_preprocessed" / "Dataset520_COVIDSemiSeg" / "splits_final.json"
    assert json.loads(folds.read_text()) == FOLDS
    assert f"folds in {folds}: 0 = a, 1" in capsys.readouterr().out


@pytest.mark.slow
def test_nnunet_keeps_the_folds(source, tmp_path, with_folds, monkeypatch):
    from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry
    convert("covid-semiseg", source, 520)
    folds = tmp_path / "nnUNet_preprocessed" / "Dataset520_COVIDSemiSeg" / "splits_final.json"
    before = folds.read_bytes()
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")             # the planner calls set_num_threads with it
    monkeypatch.setattr(sys, "argv", "nnUNetv2_plan_and_preprocess -d 520 -c 2d --verify_dataset_integrity -np 1 "
                                     "-npfp 1".split())
    plan_and_preprocess_entry()
    assert (folds.parent / "nnUNetPlans_2d" / "0.b2nd").exists() and folds.read_bytes() == before


def test_killed_after_the_folds(source, tmp_path, capsys, with_folds):
    """They stand where the next run finds the id in use: that is no reason to refuse."""
    def kill(path: Path, target: Path) -> None:
        raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        assert main(["convert", "covid-semiseg", str(source), "-d", "520"]) == 130
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset520_COVIDSemiSeg"
    assert [path.name for path in folder.iterdir()] == ["splits_final.json"] and left_in(tmp_path) == []
    assert main(["convert", "covid-semiseg", str(source), "-d", "520", "--name", "Other"]) == 2
    assert f"{folder} exists" in capsys.readouterr().err
    assert main(["convert", "covid-semiseg", str(source), "-d", "520"]) == 0
    assert left_in(tmp_path) == ["Dataset520_COVIDSemiSeg"]
