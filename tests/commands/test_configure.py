"""`nnunet_synth configure`: what stands in the plans afterwards, as nnU-Net itself reads them."""

import json
import os

import pytest

from nnunet_synth.cli import main
from nnunet_synth.commands.configure import configure
from nnunet_synth.config import TrainerConfig
from nnunet_synth.errors import UserError

PLANS = {
    "dataset_name": "Dataset701_Tiny",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {"0": {"mean": -512.3456789012345, "std": 1e-7}},
    "configurations": {
        "2d": {"data_identifier": "nnUNetPlans_2d", "batch_size": 12, "patch_size": [64, 64], "architecture": {},
               "preprocessor_name": "DefaultPreprocessor", "spacing": [1.0, 1.0],
               "normalization_schemes": ["CTNormalization"]},
        "2d_wide": {"inherits_from": "2d", "batch_size": 4},
    },
    "experiment_planner_used": "ExperimentPlanner",
    "zz_unknown": [1, {"kept": None}],
}


@pytest.fixture
def plans_file(tmp_path, monkeypatch):
    """The plans of a dataset that was planned."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset701_Tiny"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lesion": 1},
                                                     "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}))
    (folder / "nnUNetPlans.json").write_text(json.dumps(PLANS, indent=4))
    return folder / "nnUNetPlans.json"


def as_nnunet_reads(plans_file, name: str) -> dict:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    return PlansManager(str(plans_file)).get_configuration(name).configuration


def test_one_configuration_is_added_and_all_else_is_kept(plans_file, capsys):
    configure(701, "2d", "2d_half", settings={"pseudo_weight": 0.25})
    written = json.loads(plans_file.read_text())
    added = written["configurations"].pop("2d_half")
    assert written == PLANS and list(written) == list(PLANS)
    assert added["inherits_from"] == "2d"
    assert TrainerConfig.from_plans_configuration(added["nnunet_synth"]) == TrainerConfig(pseudo_weight=0.25)
    out = capsys.readouterr().out
    assert "2d_half = 2d with pseudo_weight=0.25" in out
    assert "nnUNetv2_train 701 2d_half 0 -tr SACPSTrainer\n" in out


def test_nnunet_finds_the_data_of_the_parent_and_the_block(plans_file):
    configure(701, "2d_wide", "2d_wide_seeded", settings={"seed": 3})
    seen = as_nnunet_reads(plans_file, "2d_wide_seeded")
    assert (seen["data_identifier"], seen["batch_size"]) == ("nnUNetPlans_2d", 4)
    assert seen["nnunet_synth"]["seed"] == 3


def test_settings_override_the_preset_which_overrides_the_parent(plans_file):
    configure(701, "2d", "2d_parent", settings={"momentum": 0.5, "num_styles": 3, "seed": 7, "style_source": "self"})
    configure(701, "2d_parent", "2d_child", preset="paper", settings={"num_styles": 4, "seed": None})
    child = TrainerConfig.from_plans_configuration(as_nnunet_reads(plans_file, "2d_child")["nnunet_synth"])
    assert (child.momentum, child.num_styles, child.seed, child.style_source) == (0.9, 4, None, "self")
    # The block is complete: what the parent becomes later does not change the child.
    configure(701, "2d", "2d_parent", settings={"style_source": "pool"}, force=True)
    assert as_nnunet_reads(plans_file, "2d_child")["nnunet_synth"]["style_source"] == "self"


def test_command_line_values_are_json_or_text(plans_file):
    assert main(["configure", "Dataset701_Tiny", "2d", "--name", "2d_x", "--preset", "paper", "--set",
                 "epochs_over_unlabelled=10", "style_source=self", "--set", "mask_outside_layout=false",
                 'synthesizer_options={"ngf": 8}', "num_epochs=null"]) == 0
    block = as_nnunet_reads(plans_file, "2d_x")["nnunet_synth"]
    assert (block["epochs_over_unlabelled"], block["style_source"], block["mask_outside_layout"]) == (10, "self", False)
    assert block["synthesizer_options"] == {"ngf": 8} and block["momentum"] == 0.9 and "num_epochs" not in block


def test_other_plans(plans_file, capsys):
    other = plans_file.with_name("OtherPlans.json")
    other.write_text(json.dumps({**PLANS, "plans_name": "OtherPlans"}))
    configure(701, "2d", "2d_x", plans="OtherPlans")
    assert "2d_x" in json.loads(other.read_text())["configurations"]
    assert json.loads(plans_file.read_text()) == PLANS
    assert "-tr SACPSTrainer -p OtherPlans" in capsys.readouterr().out


def test_a_name_is_replaced_only_with_force(plans_file):
    configure(701, "2d", "2d_x", settings={"seed": 1})
    before = plans_file.read_bytes()
    with pytest.raises(UserError, match="2d_x exists already"):
        configure(701, "2d", "2d_x", settings={"seed": 2})
    assert plans_file.read_bytes() == before
    configure(701, "2d", "2d_x", settings={"seed": 2}, force=True)
    assert as_nnunet_reads(plans_file, "2d_x")["nnunet_synth"]["seed"] == 2


@pytest.mark.parametrize(("arguments", "said"), [
    (["2d", "--name", "2d"], "cannot inherit from itself"),
    (["2d_wide", "--name", "2d", "--force"], "cannot inherit from itself"),
    (["2d", "--name", "2d_wide", "--force"], "is nnU-Net's own"),
    (["2d", "--name", "2d__x"], "cannot be part of a results folder"),
    (["2d", "--name", "../x"], "cannot be part of a results folder"),
    (["2e", "--name", "x"], "has no configuration '2e'"),
    (["2d", "--name", "x", "-p", "NoPlans"], "NoPlans.json does not exist"),
    (["2d", "--name", "x", "--set", "seed"], "not of the form key=value"),
    (["2d", "--name", "x", "--set", "sed=1"], "did you mean seed?"),
    (["2d", "--name", "x", "--set", "pseudo_weight=-1"], "must be at least 0"),
    (["2d", "--name", "n" * 101], "of 101 letters"),
    (["2d", "--name", "x", "--set", "synthesizer=gan"], "unknown synthesizer 'gan'"),
    (["2d", "--name", "x", "--set", 'synthesizer_options={"nfg": 1}'], "has no option 'nfg'"),
    (["2d", "--name", "x", "--preset", "paper", "--set", "num_epochs=5"], "epochs_over_unlabelled"),
])
def test_bad_input_is_one_line_and_writes_nothing(plans_file, capsys, arguments, said):
    before = plans_file.read_bytes()
    assert main(["configure", "701", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert plans_file.read_bytes() == before


def test_a_failure_while_writing_keeps_the_old_plans(plans_file, monkeypatch, capsys):
    before = plans_file.read_bytes()

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    assert main(["configure", "701", "2d", "--name", "x"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert plans_file.read_bytes() == before
    assert sorted(path.name for path in plans_file.parent.iterdir()) == ["dataset.json", "nnUNetPlans.json"]
