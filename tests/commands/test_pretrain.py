"""nnunet_synth pretrain, as a user runs it, on a tiny planned dataset."""

import argparse
import json

import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_synth.commands import pretrain as command
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import perceptual
from nnunet_synth.synthesizers.checkpoint import check_synthesizer_fits, load_synthesizer
from nnunet_synth.synthesizers.sean import SEAN
from tests.conftest import DATASET_ID

TINY = ("--preset", "tiny", "--steps", "2", "--batch-size", "2", "--device", "cpu", "--perceptual", "off",
        "--option", "ngf=8")


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Batch statistics from a few images: these tests ask what is done, not how well."""
    monkeypatch.setattr("nnunet_synth.synthesizers.pretrain.NUM_STATISTICS_IMAGES", 4)


def run(*arguments, fold="0"):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(DATASET_ID), "2d", fold, *arguments]))


def fits(meta, experiment):
    return check_synthesizer_fits(
        meta, semantic=experiment.semantic, channel_names=experiment.channel_names,
        plans_sha256=experiment.plans_sha256, val_ids=experiment.val_ids, test_ids=experiment.test_ids,
        patch_size=experiment.configuration_manager.patch_size, spacing=experiment.configuration_manager.spacing)


def refused(*arguments, match):
    with pytest.raises(UserError, match=match) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_a_whole_run(planned_dataset, monkeypatch, capsys):
    read = set()
    original = nnUNetDatasetBlosc2.load_case
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case",
                        lambda self, case_id: (read.add(case_id), original(self, case_id))[1])
    experiment = load_experiment(DATASET_ID, "2d", 0)
    # Layouts of all cases are resampled with the images' geometry; that is preprocessing, not training.
    command._prepare_layouts(experiment)
    read.clear()

    run(*TINY)
    assert read == set(experiment.train_ids) and len(experiment.val_ids) > 0

    folder = experiment.synthesizer_folder("sean")
    synthesizer = load_synthesizer(folder)
    meta = synthesizer.meta
    assert meta.train_case_ids == experiment.train_ids and meta.fold == 0 and meta.steps == 2
    assert meta.patch_size == [32, 32] and meta.divisor == 8 and meta.preset == "tiny" and meta.perceptual == "off"
    assert synthesizer.config.ngf == 8 and meta.config["ngf"] == 8
    assert meta.metrics["finished"] and {"dice_real", "dice_synthetic", "dice_permuted", "ratio", "sharpness_ratio",
                                         "lesion_intensity_kl", "drawable"} <= set(meta.metrics)
    (low, high), = meta.intensity_range
    values = torch.cat([part.image.flatten() for part in FoldSlices(experiment).iterate(False)])
    assert low <= values.min() and values.max() <= high + 1e-4
    assert fits(meta, experiment) == []
    output = capsys.readouterr().out
    assert "perceptual loss: off" in output and "segmentability" in output and str(folder) in output

    before = (folder / "model.safetensors").read_bytes()
    refused(*TINY, match="already holds a synthesizer of 2 steps.*--c.*--force")
    assert (folder / "model.safetensors").read_bytes() == before
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run(*TINY, "--c")
    assert "is finished (2 steps): there is nothing to continue" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole
    assert (folder / "log.jsonl").read_text()
    run(*TINY, "--force", "--seed", "1")
    assert (folder / "model.safetensors").read_bytes() != before


def test_a_synthesizer_of_one_fold_is_refused_in_another(planned_dataset):
    first, second = (load_experiment(DATASET_ID, "2d", fold) for fold in (0, 1))
    meta = command.describe(first, FoldSlices(first), SEAN, SEAN.PRESETS["tiny"])
    assert set(meta.train_case_ids) & set(second.val_ids)
    with pytest.raises(UserError, match="trained on validation case"):
        fits(meta, second)


def test_killed_and_continued_it_ends_as_if_never_stopped(planned_dataset, tmp_path):
    folder = load_experiment(DATASET_ID, "2d", 0).synthesizer_folder("sean")
    run(*TINY, "--steps", "4")
    whole = (folder / "model.safetensors").read_bytes()

    original = SEAN.stages

    def dying(self, steps=None, perceptual=None):
        stages = original(self, steps, perceptual)
        losses = iter([stages[0].generator_loss] * 3)

        def generator_loss(batch):
            try:
                return next(losses)(batch)
            except StopIteration:
                raise RuntimeError("killed") from None

        stages[0].generator_loss = generator_loss
        return stages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SEAN, "stages", dying)
        # A checkpoint re-estimates batch statistics, which SEAN has: those forwards must not count as steps.
        patch.setattr("nnunet_synth.synthesizers.pretrain._StageRun._reestimate", lambda self, step: None)
        with pytest.raises(RuntimeError, match="killed"):
            run(*TINY, "--steps", "4", "--force", "--checkpoint-every", "2")
    assert json.loads((folder / "meta.json").read_text())["steps"] == 2
    run(*TINY, "--steps", "4", "--c")
    assert (folder / "model.safetensors").read_bytes() == whole


def test_settings_come_from_the_configuration(edit_plans, planned_dataset):
    edit_plans("2d", synthesizer_preset="tiny", synthesizer_options={"ngf": 8, "style_dim": 32})
    run("--steps", "1", "--batch-size", "1", "--perceptual", "off", "--device", "cpu", "--option", "style_dim=16")
    meta = load_synthesizer(load_experiment(DATASET_ID, "2d", 0).synthesizer_folder("sean")).meta
    assert (meta.preset, meta.config["ngf"], meta.config["style_dim"]) == ("tiny", 8, 16)


def test_settings_of_one_synthesizer_are_not_those_of_another(edit_plans):
    edit_plans("2d", synthesizer="sean", synthesizer_preset="tiny", synthesizer_options={"style_dim": 32})
    experiment = load_experiment(DATASET_ID, "2d", 0)
    trained_class, preset, config = command.choose(experiment, "lcgan", None, None, {"width": 8})
    assert (trained_class.name, preset, config.width) == ("lcgan", "default", 8)
    assert command.choose(experiment, "lcgan", None, "tiny", {})[1:] == ("tiny", trained_class.PRESETS["tiny"])
    for named in ("sean", None):
        trained_class, preset, config = command.choose(experiment, named, None, None, {})
        assert (trained_class.name, preset, config.style_dim) == ("sean", "tiny", 32)


@pytest.mark.parametrize("arguments, match", [
    (("--synthesizer", "dall-e"), "unknown synthesizer 'dall-e'; known: .*sean"),
    (("--preset", "huge"), "no preset 'huge'; it has: tiny"),
    (("--option", "ngff=3"), "no option 'ngff'; it has: ngf"),
    (("--option", "ngf=wide"), "must be int"),
    (("--option", "ngf"), "not of the form key=value"),
    (("--patch-size", "30", "32"), "multiples of 8"),
    (("--device", "tpu"), "give cpu, cuda"),
    (("--perceptual", "nowhere"), "no such folder"),
    (("--perceptual", "vgg19"), "neither in torchvision's cache nor could they be downloaded"),
    (("--c",), "nothing to continue"),
])
def test_mistakes_get_one_line_and_leave_nothing(planned_dataset, monkeypatch, arguments, match):
    monkeypatch.setattr(perceptual, "load_vgg19", lambda weights: None)
    refused(*TINY, *arguments, match=match)
    assert not list((planned_dataset / "nnUNet_results").rglob("model.safetensors"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(planned_dataset):
    refused(*TINY, "--device", "cuda", match="sees no CUDA device; use --device cpu")


def test_auto_takes_the_best_features_at_hand(planned_dataset, monkeypatch):
    experiment = load_experiment(DATASET_ID, "2d", 0)
    model = SEAN.build(command.describe(experiment, FoldSlices(experiment), SEAN, SEAN.PRESETS["tiny"]),
                       SEAN.PRESETS["tiny"])
    monkeypatch.setattr(perceptual, "load_vgg19", lambda weights: None)
    assert command.find_features("auto", experiment, model) == (None, "off")

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    trainer = nnUNetTrainer({**experiment.plans, "continue_training": False}, "2d", 0, experiment.dataset_json,
                            torch.device("cpu"))
    trainer.initialize()
    folder = experiment.results_folder / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    features, name = command.find_features("auto", experiment, model)
    assert name == f"nnunet:{folder}" and len(features(torch.zeros(1, 1, 32, 32))) == 3

    monkeypatch.setattr(perceptual, "load_vgg19", lambda weights: torch.nn.Identity())
    assert command.find_features("auto", experiment, model)[1] == "vgg19"
