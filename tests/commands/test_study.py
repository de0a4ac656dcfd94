"""`nnunet_synth study` from the file to the table, with stand-ins for nnU-Net's training and prediction."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from nnunet_synth import process as process_module
from nnunet_synth.commands.study import study
from nnunet_synth.errors import UserError

# Trains nothing: leaves what nnU-Net leaves, and predicts the truth with a part wiped out that depends on the method.
STAND_IN = """
import json, os, shutil, sys
from pathlib import Path
name, *arguments = sys.argv[1:]
with open(os.environ['DIARY'], 'a') as diary:
    print(name, *arguments, file=diary)
value = {key: arguments[place + 1] for place, key in enumerate(arguments[:-1]) if key.startswith('-')}
results = Path(os.environ['nnUNet_results']) / 'Dataset701_Tiny'
if name == 'nnUNetv2_train':
    _, configuration, fold = arguments[:3]
    folder = results / f"{value['-tr']}__nnUNetPlans__{configuration}" / f'fold_{fold}'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'checkpoint_best.pth').touch()
    if '_cps_s1' in configuration and os.environ.get('BREAK'):
        sys.exit('out of memory')
    (folder / 'training_log_2026_1_1_00_00_00.txt').write_text(
        '2026-01-01 10:00:00.000001: Epoch 0\\n2026-01-01 10:00:10.000001: Pseudo dice [0.5]\\n')
    (folder / 'checkpoint_final.pth').touch()
elif name == 'nnUNetv2_predict':
    import SimpleITK
    target = Path(value['-o'])
    target.mkdir(parents=True)
    share = 2 if value['-tr'] == 'CPSTrainer' else 4
    for image in Path(value['-i']).glob('*_0000.nii.gz'):
        case = image.name.replace('_0000', '')
        truth = SimpleITK.ReadImage(str(Path(value['-i']).parent / 'labelsTs' / case))
        array = SimpleITK.GetArrayFromImage(truth)
        array[:, :array.shape[1] // share] = 0
        wiped = SimpleITK.GetImageFromArray(array)
        wiped.CopyInformation(truth)
        SimpleITK.WriteImage(wiped, str(target / case))
elif name == 'nnunet_synth' and arguments[0] in ('evaluate', 'preprocess'):
    from nnunet_synth.cli import main
    sys.exit(main(arguments))
else:
    sys.exit(f'no stand-in for {name}')
"""
FILE = """
name: small
title: A small study
datasets:
  lungs: {id: 701, folds: [0], labelled: [2]}
seeds: [0, 1]
budget: {num_epochs: 3}
methods:
  supervised: {trainer: SupervisedTrainer}
  CPS: {trainer: CPSTrainer}
  ST: {trainer: STTrainer, teacher: CPS}
baseline: supervised
measures: {best: false}
published:
  - {method: CPS, DSC: 62.59, source: Table IV}
"""


@pytest.fixture
def file(planned_dataset, tmp_path, monkeypatch):
    """A study of the planned dataset whose commands are stand-ins."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(process_module, "executable", lambda name: [sys.executable, str(stand_in), name])
    monkeypatch.setenv("DIARY", str(tmp_path / "diary"))
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    return path


def commands_of(tmp_path):
    diary = tmp_path / "diary"
    return diary.read_text().splitlines() if diary.exists() else []


@pytest.mark.slow
def test_from_the_file_to_the_table(file, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    monkeypatch.setenv("BREAK", "1")
    with pytest.raises(UserError, match=r"1 of \d+ runs failed, .* train/cps/lungs/f0_2/s1: .*out of memory"):
        study(file, folder=folder, device="cpu")
    states = (folder / "state.txt").read_text()
    assert "skipped  train/st/lungs/f0_2/s1: needs train/cps/lungs/f0_2/s1, which failed" in states
    assert "done     train/st/lungs/f0_2/s0" in states
    content = json.loads((folder / "study.json").read_text())
    assert {row["seed"] for row in content["tables"][0]["rows"] if row["method"] == "CPS"} == {"0"}

    monkeypatch.delenv("BREAK")
    before = len(commands_of(tmp_path))
    report = study(file, folder=folder, device="cpu")
    again = commands_of(tmp_path)[before:]
    assert [line for line in again if "train" in line][0].endswith("-tr CPSTrainer -device cpu --c")
    assert not any("_s0" in line for line in again)         # what was finished is kept
    content = json.loads((folder / "study.json").read_text())
    table, = content["tables"]
    assert {(row["method"], row["seed"]) for row in table["rows"]} == {
        (method, seed) for method in ("supervised", "CPS", "ST") for seed in "01"}
    means = {entry["method"]: entry["mean"] for entry in table["comparisons"] if entry["measure"] == "DSC"}
    assert means["supervised"] == means["ST"] > means["CPS"]
    same, = [entry for entry in table["comparisons"] if (entry["method"], entry["measure"]) == ("ST", "DSC")]
    assert same["p"] is None and same["difference"] == 0        # no p of fewer than six pairs
    assert all(entry["state"] == "done" for entry in content["runs"].values())
    assert content["study"]["name"] == "small" and content["costs"][0]["num_measured"] == 2
    predictions = folder / "predictions/cps/lungs/f0_2/s1/own"
    assert sorted(path.name for path in predictions.glob("*.nii.gz")) == ["phantom_ts_000.nii.gz",
                                                                          "phantom_ts_001.nii.gz"]
    markdown = (folder / "study.md").read_text()
    assert "lungs, 2 labelled cases, tested on its test set" in markdown and "| 0.626 |" in markdown
    assert "Worst case of" in report.read_text() or "Best case of" in report.read_text()

    before = len(commands_of(tmp_path))
    capsys.readouterr()
    study(file, folder=folder, device="cpu", collect=True)
    study(file, folder=folder, device="cpu")
    assert len(commands_of(tmp_path)) == before             # nothing is left to do
    study(file, folder=folder, dry_run=True, device="cpu")
    shown = capsys.readouterr().out
    assert "pending" not in shown and "done     train/st/lungs/f0_2/s1" in shown


@pytest.mark.slow
def test_without_the_test_labels_the_predictions_are_the_result(file, tmp_path, planned_dataset):
    shutil.move(planned_dataset / "nnUNet_raw/Dataset701_Tiny/labelsTs", tmp_path / "held_elsewhere")
    # the stand-in copies them, so they are shown to it alone
    (tmp_path / "stand_in.py").write_text(STAND_IN.replace("Path(value['-i']).parent / 'labelsTs'",
                                                           f"Path({str(tmp_path)!r}) / 'held_elsewhere'"))
    study(file, folder=tmp_path / "out", device="cpu")
    states = (tmp_path / "out/state.txt").read_text()
    assert states.count("skipped  evaluate/") == 6 and "labelsTs does not exist: without these labels" in states
    assert "No scores yet" in (tmp_path / "out/study.md").read_text()
    assert len(list((tmp_path / "out/predictions").glob("*/lungs/f0_2/*/own"))) == 6


def test_the_commands_of_a_job_array(file, tmp_path, capsys):
    import shlex
    study(file, folder=tmp_path / "out", as_list=True, device="cpu")
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line[:2] == ["nnunet_synth", "study"] and line[-2] == "--only" for line in lines)
    runs = [line[-1] for line in lines]
    assert runs.index("train/cps/lungs/f0_2/s0") < runs.index("train/st/lungs/f0_2/s0")
    with pytest.raises(UserError, match="needs prepare/lungs/folds, which is not done"):
        study(file, folder=tmp_path / "out", only="train/cps/lungs/f0_2/s0", device="cpu")
    for run in runs[:runs.index("train/supervised/lungs/f0_2/s0") + 1]:
        study(file, folder=tmp_path / "out", only=run, device="cpu")
    assert sum("nnUNetv2_train" in line for line in commands_of(tmp_path)) == 1
    assert not (tmp_path / "out/state.txt").exists()        # jobs side by side would overwrite each other's


def test_a_dry_run_does_nothing(file, tmp_path, capsys):
    study(file, folder=tmp_path / "out", dry_run=True, device="cpu")
    shown = capsys.readouterr().out
    assert "done     prepare/lungs/plan" in shown and "pending  train/cps/lungs/f0_2/s1" in shown
    assert "nnUNetv2_train 701 2d_cps_s1 5 -tr CPSTrainer -device cpu" in shown
    assert "nnunet_synth split 701 --of-fold 0 --labelled 2 --seed 0" in shown
    assert not (tmp_path / "out").exists() and commands_of(tmp_path) == []


@pytest.mark.parametrize(("arguments", "message"), [
    ({"budget_minutes": -1}, "--budget-minutes -1"), ({"gpus": ["0"], "device": "cpu"}, "contradict"),
    ({"gpus": ["0", "0"]}, "give different numbers"), ({"only": "train/x"}, "no run 'train/x'"),
])
def test_bad_arguments(file, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        study(file, folder=tmp_path / "out", **{"device": "cpu" if "gpus" not in arguments else None, **arguments})


def test_two_words(file):
    import argparse

    from nnunet_synth.commands import study as verb
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    with pytest.raises(UserError, match="give one STUDY, or collect STUDY"):
        verb.run(parser.parse_args(["gather", str(file)]))
    assert Path(file).exists()
