"""nnunet_synth pretrain --synthesizer um2i, as a user runs it: which cases it reads, both stages, a killed run, cached
superpixels."""

import argparse
import json

import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_synth.commands import layouts
from nnunet_synth.commands import pretrain as command
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.checkpoint import load_synthesizer
from nnunet_synth.synthesizers.um2i import SemiSupervisedStage
from tests.conftest import DATASET_ID

TINY = ("--synthesizer", "um2i", "--preset", "tiny", "--steps", "4", "--batch-size", "2", "--device", "cpu",
        "--perceptual", "off", "--option", "width=2", "--option", "ndf=2")


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(DATASET_ID), "2d", "0", *TINY, *arguments]))


@pytest.fixture
def experiment(planned_dataset):
    found = load_experiment(DATASET_ID, "2d", 0)
    command._prepare_layouts(found)
    return found


def test_a_whole_run_reads_labelled_and_unlabelled_training_cases(experiment, monkeypatch, capsys):
    read = set()
    original = nnUNetDatasetBlosc2.load_case
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case",
                        lambda self, case_id: (read.add(case_id), original(self, case_id))[1])
    run()
    assert read == {*experiment.train_ids, *experiment.pool_ids} and experiment.pool_ids
    assert not read & set(experiment.val_ids)
    folder = experiment.synthesizer_folder("um2i")
    meta = load_synthesizer(folder).meta
    assert meta.steps == 4 and meta.metrics["finished"] and meta.metrics["drawable"] == 1
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in logged] == ["supervised", "semi_supervised"]
    assert "pseudo_segmentation" in logged[1] and "pseudo_segmentation" not in logged[0]
    output = capsys.readouterr()
    assert "segmentability" in output.out and "warning" not in output.err


def test_killed_in_its_second_stage_and_continued_it_ends_as_if_never_stopped(experiment, monkeypatch):
    folder = experiment.synthesizer_folder("um2i")
    run()
    whole = (folder / "model.safetensors").read_bytes()
    losses = []
    original = SemiSupervisedStage.generator_loss

    def dying(self, batch):
        losses.append(1)
        if len(losses) == 2:
            raise RuntimeError("killed")
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SemiSupervisedStage, "generator_loss", dying)
        with pytest.raises(RuntimeError, match="killed"):
            run("--force", "--checkpoint-every", "1")
    run("--c")
    assert (folder / "model.safetensors").read_bytes() == whole


def test_cached_superpixels(experiment):
    """Refused where there are none; found beforehand, they are what it draws from."""
    with pytest.raises(UserError, match="no cached superpixels: run nnunet_synth layouts"):
        run("--option", "superpixels=cached")
    layouts.layouts(DATASET_ID, "superpixel", segmentation="felzenszwalb", into="cluster")
    command._prepare_layouts(load_experiment(DATASET_ID, "2d", 0))
    run("--option", "superpixels=cached", "--force")
    assert load_synthesizer(experiment.synthesizer_folder("um2i")).needs == {"image", "cluster"}
