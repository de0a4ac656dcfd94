"""`nnunet_synth split`: what stands in splits_final.json afterwards, and what is left alone."""

import json
import os

import pytest

from nnunet_synth.cli import main
from nnunet_synth.commands.split import split
from nnunet_synth.data.splits import default_splits
from nnunet_synth.errors import UserError

CASES = [f"p{patient}_s{scan}" for patient in range(10) for scan in range(2)]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A dataset of ten patients with two scans each; folder of its preprocessed part, where its splits will be."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = tmp_path / "nnUNet_raw" / "Dataset701_Tiny"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for case in CASES:
        (raw / "imagesTr" / f"{case}_0000.nii.gz").touch()
        (raw / "labelsTr" / f"{case}.nii.gz").touch()
    (raw / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    return tmp_path / "nnUNet_preprocessed" / "Dataset701_Tiny"


@pytest.fixture
def own_folds(dataset):
    """Two folds by patient, written by the user."""
    halves = [CASES[:10], CASES[10:]]
    folds = [{"train": halves[0], "val": halves[1]}, {"train": halves[1], "val": halves[0]}]
    dataset.mkdir(parents=True)
    (dataset / "splits_final.json").write_text(json.dumps(folds))
    return folds


def read(dataset) -> list[dict]:
    return json.loads((dataset / "splits_final.json").read_text())


def test_folds_are_appended_and_named(dataset, own_folds, capsys):
    assert split(701, 1, ["20%", "40%", 6], r"^(p\d+)_", seed=1) == [2, 3, 4]
    splits = read(dataset)
    assert splits[:2] == own_folds
    assert [entry["name"] for entry in splits[2:]] == ["f1_20%", "f1_40%", "f1_6"]
    assert [len(entry["train"]) for entry in splits[2:]] == [2, 4, 6]
    for entry in splits[2:]:
        assert entry["val"] == own_folds[1]["val"]
        assert sorted(entry["train"] + entry["unlabelled"]) == sorted(own_folds[1]["train"])
        assert {case[:2] for case in entry["train"]}.isdisjoint(case[:2] for case in entry["unlabelled"])
    assert set(splits[2]["train"]) < set(splits[3]["train"]) < set(splits[4]["train"])
    out = capsys.readouterr().out
    assert "fold 3 = f1_40%: 4 labelled (40.0%), 6 unlabelled, 10 validation cases" in out
    assert "nnUNetv2_train 701 2d 2 -tr SACPSTrainer" in out


def test_default_folds_are_made_first(dataset):
    assert split("Dataset701_Tiny", "0", ["25%"]) == [5]
    splits = read(dataset)
    assert splits[:5] == default_splits(CASES)
    assert len(splits[5]["train"]) == 4


def test_preprocessed_cases_decide_over_raw_ones_and_ids_may_hold_dots(dataset):
    preprocessed_ids = [f"1.2.643.{i}_rot" for i in range(6)]
    (dataset / "gt_segmentations").mkdir(parents=True)
    for case in preprocessed_ids:
        (dataset / "gt_segmentations" / f"{case}.nii.gz").touch()
    (dataset / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    split(701, 0, ["2"])
    assert read(dataset)[:5] == default_splits(preprocessed_ids)


def test_a_named_fold_can_be_divided_and_what_it_hides_stays_hidden(dataset, own_folds):
    split(701, 0, ["60%"])
    split(701, "f0_60%", ["2"])
    parent, child = read(dataset)[2:]
    assert child["name"] == "f0_60%_2"
    assert set(child["train"]) < set(parent["train"])
    assert set(child["unlabelled"]) == set(own_folds[0]["train"]) - set(child["train"])


def test_stock_nnunet_reads_the_same_labels(dataset, own_folds):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    index, = split(701, 0, ["30%"], seed=5)

    class Trainer(nnUNetTrainer):
        def __init__(self):     # only what do_split reads
            self.fold = index
            self.preprocessed_dataset_folder_base = str(dataset)
            self.preprocessed_dataset_folder = self.folder_with_segs_from_previous_stage = None
            self.dataset_class = lambda *args, **kwargs: None

        def print_to_log_file(self, *args, **kwargs):
            pass

    entry = read(dataset)[index]
    assert Trainer().do_split() == (entry["train"], entry["val"])


def test_the_same_name_is_never_overwritten_without_force(dataset, own_folds):
    split(701, 0, ["20%", "40%"], seed=1)
    before = (dataset / "splits_final.json").read_bytes()
    with pytest.raises(UserError, match=r"f0_20% already; --force"):
        split(701, 0, ["60%", "20%"], seed=2)
    assert (dataset / "splits_final.json").read_bytes() == before

    assert split(701, 0, ["60%", "20%"], seed=2, force=True) == [4, 2]
    names = [entry.get("name") for entry in read(dataset)]
    assert names == [None, None, "f0_20%", "f0_40%", "f0_60%"]
    assert set(read(dataset)[2]["train"]) < set(read(dataset)[4]["train"])


def test_a_failure_while_writing_keeps_the_old_file(dataset, own_folds, monkeypatch, capsys):
    before = (dataset / "splits_final.json").read_bytes()

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    assert main(["split", "701", "--of-fold", "0", "--labelled", "20%"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (dataset / "splits_final.json").read_bytes() == before
    assert [path.name for path in dataset.iterdir()] == ["splits_final.json"]


@pytest.mark.parametrize(("arguments", "said"), [
    (["--of-fold", "7", "--labelled", "20%"], "no fold 7"),
    (["--of-fold", "0", "--labelled", "20%", "20.0%"], "comes to the same 2 case(s) as f0_20%"),
    (["--of-fold", "0", "--labelled", "10%", "20%", "--by-group", "^p."], "comes to the same 2 case(s) as f0_10%"),
    (["--of-fold", "0", "--labelled", "0.2"], "neither a percentage (10%) nor a whole number"),
    (["--of-fold", "0", "--labelled", "99"], "has 10 labelled training case(s)"),
    (["--of-fold", "0", "--labelled", "20%", "--by-group", "^q"], "does not match --by-group"),
])
def test_bad_input_is_one_line_and_writes_nothing(dataset, own_folds, capsys, arguments, said):
    before = (dataset / "splits_final.json").read_bytes()
    assert main(["split", "701", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert (dataset / "splits_final.json").read_bytes() == before


@pytest.mark.parametrize("name", ["702", "Dataset702_Nothing", "tiny"])
def test_a_dataset_that_does_not_exist_is_refused(dataset, capsys, name):
    assert main(["split", name, "--of-fold", "0", "--labelled", "20%"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not dataset.exists()


def test_groups_on_both_sides_of_the_fold_are_warned_of(dataset, capsys):
    split(701, 0, ["20%"], r"^(p\d+)")
    assert "both in training and in validation" in capsys.readouterr().err
