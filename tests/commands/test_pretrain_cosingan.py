"""nnunet_synth pretrain --synthesizer cosingan: slices by name, the size of the pyramid, features of two networks."""

import argparse
import json

import pytest
import torch

from nnunet_synth.commands import pretrain as command
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import perceptual
from nnunet_synth.synthesizers.checkpoint import load_synthesizer
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from tests.conftest import DATASET_ID

TINY = ("--synthesizer", "cosingan", "--preset", "tiny", "--steps", "2", "--batch-size", "1", "--device", "cpu",
        "--option", "width=4", "--option", "ndf=4")


@pytest.fixture(autouse=True)
def no_vgg(monkeypatch):
    monkeypatch.setattr(perceptual, "load_vgg19", lambda weights: None)


@pytest.fixture
def experiment(planned_dataset):
    return load_experiment(DATASET_ID, "2d", 0)


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(DATASET_ID), "2d", "0", *TINY, *arguments]))


def test_slices_can_be_named_and_training_resumes(experiment, capsys):
    wanted = [f"{case_id}:{index}" for case_id, index in FoldSlices(experiment).target_origins[:2]]
    run("--slices", *wanted)
    folder = experiment.synthesizer_folder("cosingan")
    model = load_synthesizer(folder)
    assert model.meta.metrics["training_slices"] == wanted == list(model.config.slices)
    assert len(model.pyramids) == 2 and model.meta.metrics["finished"] and model.trained_parts.tolist() == [2, 2]
    output = capsys.readouterr().out
    assert "perceptual loss: off" in output and "MS-FVL is off" in output
    assert f"MS-FUL is off: it needs a 2D nnU-Net of this fold (nnUNetv2_train {DATASET_ID} 2d 0" in output
    stages = [json.loads(line)["stage"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert stages == ["model 1, 32 × 32, fit", "model 1, 32 × 32, restore", "model 2, 32 × 32, fit",
                      "model 2, 32 × 32, restore"]
    before = (folder / "model.safetensors").read_bytes()
    run("--slices", *wanted, "--c")
    assert (folder / "model.safetensors").read_bytes() == before


def test_auto_takes_the_largest_lesions_of_different_cases(experiment):
    run("--slices", "auto", "--option", "num_models=2")
    chosen = load_synthesizer(experiment.synthesizer_folder("cosingan")).meta.metrics["training_slices"]
    areas = {}
    for part in FoldSlices(experiment).iterate(True):
        case_id, index = part.origin[0]
        areas.setdefault(case_id, {})[index] = int((part.label > 0).sum())
    largest = sorted(areas, key=lambda case_id: -max(areas[case_id].values()))[:2]
    assert chosen == [f"{case_id}:{max(areas[case_id], key=areas[case_id].get)}" for case_id in largest]


@pytest.mark.parametrize(("arguments", "match"), [
    (("--slices", "nobody:0"), "slice nobody:0 is unknown: nobody is no labelled training case of this fold"),
    (("--slices", "nobody"), "slice 'nobody' is not of the form CASE:INDEX"),
    (("--max-scale", "512"), "max_scale 512 cannot be reached with patches of 32 × 32: choose at most 32"),
    (("--max-scale", "40"), "max_scale 40 is none of CoSinGAN's scales: choose one of 32"),
])
def test_mistakes_get_one_line_and_leave_nothing(planned_dataset, arguments, match):
    with pytest.raises(UserError, match=match) as error:
        run(*arguments)
    assert "\n" not in str(error.value)
    assert not list((planned_dataset / "nnUNet_results").rglob("cosingan*"))


def test_a_refused_slice_does_not_cost_the_old_model(experiment):
    run()
    weights = experiment.synthesizer_folder("cosingan") / "model.safetensors"
    before = weights.read_bytes()
    validation_case = experiment.val_ids[0]
    with pytest.raises(UserError, match=f"{validation_case} is no labelled training case"):
        run("--slices", f"{validation_case}:0", "--force")
    assert weights.read_bytes() == before


def test_flags_of_cosingan_are_refused_by_others(planned_dataset):
    for flag in (["--max-scale", "64"], ["--slices", "auto"]):
        with pytest.raises(UserError, match=f"synthesizer sean has no option '{flag[0][2:].replace('-', '_')}'"):
            command.pretrain(DATASET_ID, "2d", 0, synthesizer="sean", device="cpu",
                             **{"max_scale": 64} if "64" in flag else {"chosen_slices": ["auto"]})


def test_the_folds_own_network_and_vgg_at_once(experiment, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    trainer = nnUNetTrainer({**experiment.plans, "continue_training": False}, "2d", 0, experiment.dataset_json,
                            torch.device("cpu"))
    trainer.initialize()
    folder = experiment.results_folder / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    config = CoSinGAN.PRESETS["tiny"]
    model = CoSinGAN.build(command.describe(experiment, FoldSlices(experiment), CoSinGAN, config), config)
    features, name = command.find_features("auto", experiment, model)
    assert name == f"nnunet:{folder}" and features.classification is None
    assert len(features.segmentation(torch.zeros(1, 1, 32, 32))) == 3
    monkeypatch.setattr(perceptual, "load_vgg19", lambda weights: torch.nn.Identity())
    features, name = command.find_features("auto", experiment, model)
    assert name == f"vgg19 + nnunet:{folder}" and features.classification and features.segmentation
    features, name = command.find_features("vgg19", experiment, model)
    assert name == "vgg19" and features.segmentation is None
    features, name = command.find_features(str(folder), experiment, model)
    assert name == f"nnunet:{folder}" and features.classification is None
