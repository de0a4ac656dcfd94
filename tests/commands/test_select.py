"""nnunet_synth select: the planted good model wins; what it leaves; mistakes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_synth.cli import main
from nnunet_synth.commands.pretrain import describe
from nnunet_synth.commands.select import select
from nnunet_synth.config import TrainerConfig
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.data.unlabelled import preprocess_pool
from nnunet_synth.selection.acceptance import find_checkpoint, load_gate, load_record
from nnunet_synth.synthesizers.checkpoint import load_meta
from nnunet_synth.synthesizers.lcgan import LcGAN
from nnunet_synth.trainers.synthesis import find_synthesizer_folder
from tests.conftest import DATASET_ID
from tests.selection.planted import FAULTS, GOOD, AnalyticClassifier, AnalyticSegmenter, Planted, plant
from tests.trainers.runs import save_untrained, train_stock

FAST = ("-n", "8", "--classifier", "resnet18", "--classifier-steps", "2", "--device", "cpu")


@pytest.fixture
def experiment(planned_dataset):
    return load_experiment(DATASET_ID, "2d", 0)


@pytest.fixture
def planted(experiment, monkeypatch):
    """Four models of one synthesizer, and a segmenter that is known to work."""
    find = {"planted": Planted}.__getitem__
    monkeypatch.setattr("nnunet_synth.synthesizers.checkpoint.find_synthesizer", find)
    monkeypatch.setattr("nnunet_synth.selection.candidates.find_synthesizer", find)
    preprocess_pool(experiment)         # the layouts with it
    slices = FoldSlices(experiment)
    monkeypatch.setattr("nnunet_synth.selection.segmenter.load_segmenter",
                        lambda experiment, name, device: AnalyticSegmenter(slices))
    plant(experiment, describe(experiment, slices, Planted, Planted.Config()))
    return experiment


def run(*arguments):
    return main(["select", str(DATASET_ID), "2d", "0", *arguments])


def test_the_planted_good_model_wins(planted, capsys, monkeypatch):
    monkeypatch.setattr("nnunet_synth.selection.ranking.fit", AnalyticClassifier.fit)
    found = select(DATASET_ID, "2d", 0, synthesizers=["planted"], number=48, classifier="resnet18", device="cpu")
    scores = {FAULTS[found.candidates[score.name].checkpoint]: score for score in found.scores}
    best, others = found.scores[0], [score for score in found.scores[1:]]
    assert found.candidates[best.name].checkpoint == GOOD, [(score.name, score.mean_rank) for score in found.scores]
    assert all(best.mean_rank < score.mean_rank for score in others)
    # Each fault is told by the criterion that is there for it.
    assert scores["shuffle"].fcn_dice < 0.6 * scores["none"].fcn_dice == 0.6 * found.real.fcn_dice
    assert scores["blur"].laplacian_ratio < 0.7 < 1.3 < scores["noise"].laplacian_ratio
    assert scores["none"].laplacian_ratio == pytest.approx(1)
    assert max(scores["blur"].acceptance, scores["noise"].acceptance) < 0.2 < 0.8 < scores["none"].acceptance
    assert find_checkpoint(found.candidates[best.name].home, "best", "").name == GOOD
    said = capsys.readouterr().out
    assert said.index(f"planted {GOOD}") < said.index("planted final") and "report.html" in said

    folder = planted.results_folder / "selection__nnUNetPlans__2d" / "fold_0"
    rows = list(csv.DictReader((folder / "ranking.csv").open()))
    assert [row["checkpoint"] for row in rows][0] == GOOD and len(rows) == 5 and rows[-1]["name"] == "real"
    content = json.loads((folder / "ranking.json").read_text())
    assert [one["rank"] for one in content["ranking"]] == [1, 2, 3, 4]
    single = content["ranking"][0]["single_images"]
    assert len(single["condition"]) == len(single["fcn_dice"]) == 48
    assert np.mean(single["fcn_dice"]) == pytest.approx(content["ranking"][0]["fcn_dice"])
    assert len(single["probability_real"]) == len(single["held_out"]) < 48
    assert sorted(path.name for path in (folder / "galleries").iterdir()) == sorted(
        [*(f"planted_{name}.png" for name in FAULTS), "real.png"])
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") >= 5 and "http" not in page.replace("http://www.w3.org", "")


def test_with_the_folds_own_network_and_without_validation_cases(experiment, planned_dataset, monkeypatch, capsys):
    """The whole chain with an untrained LcGAN and a stock nnU-Net, through nnU-Net's predictor."""
    home = save_untrained(LcGAN)
    train_stock(planned_dataset)
    read = set()
    original = nnUNetDatasetBlosc2.load_case
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case",
                        lambda self, case_id: (read.add(case_id), original(self, case_id))[1])
    assert run(*FAST, "--segmenter", "nnUNetTrainer__nnUNetPlans__2d") == 0
    assert read == set(experiment.train_ids) and experiment.val_ids
    folder = experiment.results_folder / "selection__nnUNetPlans__2d" / "fold_0"
    content = json.loads((folder / "ranking.json").read_text())
    assert content["ranking"][0]["synthesizer"] == "lcgan" and content["ranking"][0]["fcn_dice"] is not None
    assert content["facts"]["segmenter"] == "nnUNetTrainer__nnUNetPlans__2d, fold 0"

    record = load_record(home, "")
    assert record.best == "final" and list(record.checkpoints) == ["final"] and record.patch_size == [32, 32]
    gate = load_gate(home, load_meta(home), 0.1, "cpu", "")
    assert gate.record == record
    settings = TrainerConfig(synthesizer="lcgan", synthesizer_checkpoint="best")
    assert find_synthesizer_folder(experiment, settings) == home

    # Again: the same numbers, and nothing of the former selection is in the way.
    assert run(*FAST) == 0
    assert json.loads((folder / "ranking.json").read_text())["ranking"] == content["ranking"]
    assert load_record(home, "").classifier_sha256 == record.classifier_sha256


def test_without_a_segmenter(experiment, capsys):
    save_untrained(LcGAN)
    assert run(*FAST, "--segmenter", "none") == 0
    content = json.loads((experiment.results_folder / "selection__nnUNetPlans__2d" / "fold_0"
                          / "ranking.json").read_text())
    assert content["ranking"][0]["fcn_dice"] is None and set(content["ranking"][0]["ranks"]) == {"sharpness",
                                                                                                "acceptance"}


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "nnunet_synth select: error" in line]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize("arguments, words", [
    (("-n", "3"), "-n 3: give at least 4"),
    (("--classifier", "alexnet"), "alexnet is unknown; known: inception_v3, resnet18, googlenet"),
    (("--synthesizer", "nonesuch"), "unknown synthesizer 'nonesuch'"),
    (("--synthesizer", "lcgan"), "synthesizer lcgan has no model for fold 0: first run nnunet_synth pretrain 701 2d 0 "
                                 "--synthesizer lcgan"),
    ((), "no synthesizer was trained for fold 0 of Dataset701_Tiny 2d: first run nnunet_synth pretrain 701 2d 0"),
])
def test_mistakes_get_one_line(experiment, capsys, arguments, words):
    assert words in refused(capsys, "--device", "cpu", *arguments)
    assert not (experiment.results_folder / "selection__nnUNetPlans__2d").exists()


def test_segmenters_that_cannot_judge(experiment, planned_dataset, capsys):
    home = save_untrained(LcGAN)
    assert "no segmenter at" in (said := refused(capsys, *FAST)) and "(nnUNetv2_train 701 2d 0)" in said
    assert "no segmenter at" in refused(capsys, *FAST, "--segmenter", "SACPSTrainer__nnUNetPlans__2d")
    train_stock(planned_dataset, "3d_fullres")
    said = refused(capsys, *FAST, "--segmenter", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert "nnUNetTrainer__nnUNetPlans__3d_fullres" in said
    path = train_stock(planned_dataset)
    path.write_bytes(path.read_bytes()[:200])
    assert "cannot be read as a checkpoint of nnU-Net" in refused(capsys, *FAST)
    assert not (home / "selection.json").exists() and not (home / "classifier.safetensors").exists()


def test_a_synthesizer_that_saw_validation_cases_is_refused(experiment, capsys):
    from dataclasses import replace

    from nnunet_synth.synthesizers.checkpoint import save_meta
    home = save_untrained(LcGAN)
    meta = load_meta(home)
    save_meta(replace(meta, train_case_ids=[*meta.train_case_ids, experiment.val_ids[0]]), home)
    assert "was trained on validation case(s)" in refused(capsys, *FAST, "--segmenter", "none")
