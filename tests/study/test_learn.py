"""What a training, a prediction and a dataset of synthetic cases leave, and how broken ones go on."""

import json
import os
import shutil

import pytest

from nnunet_synth.errors import UserError
from nnunet_synth.study.graph import runs_of
from nnunet_synth.study.learn import Train
from nnunet_synth.study.parse import parse_study
from nnunet_synth.study.place import Place

DATASET = "Dataset701_Tiny"
STUDY = {"name": "small", "datasets": {"lungs": {"id": 701, "folds": [0], "labelled": [2]}}, "seeds": [0],
         "synthesizers": {"sean": {"preset": "tiny", "steps": 5}}, "baseline": "supervised", "made_datasets": 800,
         "methods": {"supervised": {"trainer": "SupervisedTrainer"},
                     "mixed": {"trainer": "SupervisedTrainer", "synthesizer": "sean", "data": "real+synthetic:3"},
                     "alone": {"trainer": "SupervisedTrainer", "synthesizer": "sean", "data": "synthetic:3"}}}


def with_methods(tmp_path, **methods):
    """The runs of the study with further methods, by id, and the `sample` command of each method."""
    study = parse_study({**STUDY, "methods": {**STUDY["methods"], **methods},
                         "synthesizers": {**STUDY["synthesizers"], "um2i": {"preset": "tiny"},
                                          "fine": {"synthesizer": "um2i", "preset": "tiny",
                                                   "options": {"gray_step": 5}}}})
    found = {run.id: run for run in runs_of(study, Place.find(tmp_path / "study", "cpu"))}
    samples = {run.method.name: run.commands()[0] for run in found.values() if run.kind == "synthesize"}
    return found, samples


@pytest.fixture
def runs(planned_dataset, tmp_path):
    """All runs, by id; folds and configurations are made."""
    found = {run.id: run for run in runs_of(parse_study(STUDY), Place.find(tmp_path / "study", "cpu"))}
    for name in ("folds", "configure"):
        found[f"prepare/lungs/{name}"].begin()
    (planned_dataset / "nnUNet_preprocessed" / DATASET / "dataset_fingerprint.json").touch()
    return found


@pytest.mark.parametrize(("there", "resume", "is_done"), [
    ([], (), False), (["checkpoint_latest.pth"], ("--c",), False), (["checkpoint_best.pth"], ("--c",), False),
    (["checkpoint_final.pth"], ("--val",), False),
    (["checkpoint_final.pth", "validation/summary.json"], ("--val",), True)])
def test_a_training_goes_on_where_it_was(runs, there, resume, is_done):
    train = runs["train/supervised/lungs/f0_2/s0"]
    train = Train(train.id, (), None, train.files, train.trainer, train.configuration, train.fold,
                  needs_validation=True)
    for name in there:
        (train.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (train.folder / name).touch()
    command, = train.commands()
    assert command[:5] == ("nnUNetv2_train", "701", "2d_supervised_s0", "5", "-tr") and command[8:] == resume
    assert train.is_done() == is_done


def test_predictions_of_an_older_checkpoint_are_made_again(runs):
    predict = runs["predict/supervised/lungs/f0_2/s0/own"]
    checkpoint = predict.trained.folder / "checkpoint_final.pth"
    with pytest.raises(UserError, match="checkpoint_final.pth does not exist"):
        predict.begin()
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    unfinished = predict.target.parent / ".own.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "half.nii.gz").touch()            # of a run that was killed
    predict.begin()
    assert not predict.is_done() and not unfinished.exists()
    unfinished.mkdir()
    predict.finish()
    assert predict.is_done() and str(predict.target) in predict.shown()[0]
    os.utime(checkpoint, (2e9, 2e9))                # trained again
    assert not predict.is_done()


def draw(run, number):
    """What `nnunet_synth sample --output` leaves: copies of a labelled case."""
    for index in range(number):
        for folder, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
            (run.drawn / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.files.raw / folder / f"phantom_tr_000{suffix}.nii.gz",
                            run.drawn / folder / f"sean_{index:05d}{suffix}.nii.gz")


@pytest.mark.parametrize(("number", "with_real"), [(800, True), (801, False)])
def test_real_and_synthetic_cases_become_a_dataset(runs, planned_dataset, number, with_real):
    make = runs[f"synthesize/{number}/lungs/f0_2"]
    command, = make.commands()
    assert command[:5] == ("nnunet_synth", "sample", "701", "2d", "5") and "3" in command
    assert not make.is_done()
    draw(make, 3)
    assert make.commands() == []                    # drawn already
    make.finish()
    assert make.is_done()

    splits = json.loads((make.files.preprocessed / "splits_final.json").read_text())
    parent, made = splits[5], json.loads((make.made.preprocessed / "splits_final.json").read_text())
    synthetic = [f"sean_{index:05d}" for index in range(3)]
    assert made == [{"name": "0_2", "train": sorted([*(parent["train"] if with_real else []), *synthetic]),
                     "val": parent["val"]}]
    images = {path.name.removesuffix("_0000.nii.gz") for path in (make.made.raw / "imagesTr").iterdir()}
    assert images == {*made[0]["train"], *made[0]["val"]}       # and none whose label is hidden
    plans = make.made.plans()
    assert plans["dataset_name"] == make.made.name and plans["configurations"] == make.files.plans()["configurations"]
    method = "mixed" if with_real else "alone"
    train = runs[f"train/{method}/lungs/f0_2/s0"]
    assert train.commands()[0][1:4] == (str(number), f"2d_{method}_s0", "0")

    content = json.loads((make.made.raw / "dataset.json").read_text())
    content["nnunet_synth"]["study"]["data"] = "synthetic:9"
    (make.made.raw / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"dataset id {number} is taken"):
        make.is_done()


def option(command, flag):
    return command[command.index(flag) + 1]


def test_images_from_noise_need_a_mask_source_trained_beside_their_synthesizer(planned_dataset, tmp_path):
    method = {"trainer": "SupervisedTrainer", "data": "synthetic:3", "draw_for": "noise"}
    runs, samples = with_methods(tmp_path, v2m2i={**method, "synthesizer": "sean"},
                                 v2um2i={**method, "synthesizer": "um2i"}, fine={**method, "synthesizer": "fine"})
    masks = {run.id: run.commands()[0] for run in runs.values() if type(run).__name__ == "PretrainMasks"}
    assert list(masks) == ["pretrain/v2m-of-2d/lungs/f0_2", "pretrain/v2um-of-2d/lungs/f0_2",
                           "pretrain/v2um-of-2d-fine/lungs/f0_2"]
    for (run_id, command), name, configuration in zip(masks.items(), ("v2m", "v2um", "v2um"), ("2d", "2d", "2d_fine"),
                                                      strict=True):
        assert command[:5] == ("nnunet_synth", "pretrain", "701", configuration, "5")
        assert option(command, "--mask-source") == name and option(command, "--preset") == "tiny"
        assert "--synthesizer" not in command and "--perceptual" not in command and "--steps" not in command
        assert runs[run_id].folder.parent.name == f"{name}__nnUNetPlans__{configuration}"     # where `sample` looks
    assert option(masks["pretrain/v2um-of-2d-fine/lungs/f0_2"], "--option") == "gray_step=5.0"
    assert "--option" not in masks["pretrain/v2um-of-2d/lungs/f0_2"]
    for name, configuration, source in (("v2m2i", "2d", "v2m-of-2d"), ("v2um2i", "2d", "v2um-of-2d"),
                                        ("fine", "2d_fine", "v2um-of-2d-fine")):
        assert samples[name][3] == configuration and option(samples[name], "--from") == "noise"
        run = next(run for run in runs.values() if run.kind == "synthesize" and run.method.name == name)
        assert f"pretrain/{source}/lungs/f0_2" in run.needs
    assert option(samples["mixed"], "--from") == "labels"


def test_whole_volumes_are_drawn_once_for_2d_and_3d(planned_dataset, tmp_path):
    method = {"trainer": "SupervisedTrainer", "synthesizer": "sean"}
    runs, samples = with_methods(
        tmp_path, all={**method, "data": "volumes"}, some={**method, "data": "real+volumes:2"},
        masks={**method, "data": "volumes", "draw_for": "paper-conditions"},
        deep={**method, "data": "volumes", "configuration": "3d_fullres"})
    assert "deep" not in samples                    # those of `all`
    for command in (samples["all"], samples["some"], samples["masks"]):
        assert command[3] == "2d" and "--volumes" in command and "--from" not in command
    assert "-n" not in samples["all"] and option(samples["some"], "-n") == "2"
    assert [name for name, command in samples.items() if "--paper-conditions" in command] == ["masks"]
    flat, deep = runs["train/all/lungs/f0_2/s0"], runs["train/deep/lungs/f0_2/s0"]
    assert flat.files == deep.files and flat.files != runs["train/masks/lungs/f0_2/s0"].files
    assert (flat.configuration, deep.configuration) == ("2d_all_s0", "3d_fullres_deep_s0")
    made = flat.files.id
    assert {f"preprocess/{made}/{name}/lungs/f0_2" for name in ("2d", "3d-fullres")} <= set(runs)
    assert [run_id for run_id in runs if run_id.startswith("pretrain/sean")] == ["pretrain/sean/2d/lungs/f0_2"]
    wanted = {block.name: block.base for block in runs["prepare/lungs/configure"].configurations}
    assert wanted["2d_all_s0"] == "2d" and wanted["3d_fullres_deep_s0"] == "3d_fullres" and "2d" not in wanted


def test_volumes_of_a_synthesizer_with_another_name(planned_dataset, tmp_path):
    """It has a configuration of its own, which is no base for a 3D training."""
    method = {"trainer": "SupervisedTrainer", "synthesizer": "fine", "data": "volumes"}
    runs, samples = with_methods(tmp_path, flat=method, deep={**method, "configuration": "3d_fullres"})
    assert samples["flat"][3] == "2d_fine"
    wanted = {block.name: block.base for block in runs["prepare/lungs/configure"].configurations}
    assert wanted["2d_fine"] == "2d" and wanted["2d_flat_s0"] == "2d_fine"
    assert wanted["3d_fullres_deep_s0"] == "3d_fullres"


def test_the_report_says_what_synthetic_data_have_seen():
    from nnunet_synth.study.plan import Method, TrainingData
    volumes = TrainingData(False, None, True)
    assert Method("a", "T").data_in_words == "real"
    assert Method("a", "T", data=volumes).data_in_words == "volumes, drawn for labels"
    assert "validation cases were seen" in Method("a", "T", data=volumes, draw_for="paper-conditions").data_in_words


def test_a_synthesizer_of_other_settings_is_not_used(runs):
    pretrain = runs["pretrain/sean/2d/lungs/f0_2"]
    assert not pretrain.is_done() and "--c" not in pretrain.commands()[0]
    pretrain.folder.mkdir(parents=True)
    (pretrain.folder / "train_state.pt").touch()
    assert pretrain.commands()[0][-1] == "--c"
    from nnunet_synth.synthesizers.base import SynthMeta
    from nnunet_synth.synthesizers.semantic import SemanticClasses
    split = pretrain.files.experiment("2d", 5).split_sha256

    def write(**changes):
        meta = {"synthesizer": "sean", "config": {}, "dataset": DATASET, "channel_names": ["CT"],
                "semantic": SemanticClasses.from_labels({"infection": 1}, {}), "target_labels": [1],
                "intensity_range": [[0.0, 1.0]], "patch_size": [32, 32], "divisor": 8, "fold": 5,
                "train_case_ids": [], "split_sha256": split, "preset": "tiny", "steps": 5,
                "metrics": {"finished": True}, **changes}
        (pretrain.folder / "meta.json").write_text(json.dumps(SynthMeta(**meta).to_json()))
    write()
    assert pretrain.is_done()
    write(metrics={}, steps=3)
    assert not pretrain.is_done()                   # still in training
    for changes, message in (({"preset": "paper"}, "preset paper, this study asks for tiny"),
                             ({"steps": 9}, "of 9 steps, this study asks for 5"),
                             ({"split_sha256": "other"}, "trained on another split")):
        write(**changes)
        with pytest.raises(UserError, match=message):
            pretrain.is_done()


def test_labels_of_another_test_set_must_mean_the_same(runs, tmp_path):
    from dataclasses import replace
    evaluate = runs["evaluate/supervised/lungs/f0_2/s0/own"]
    other = tmp_path / "Dataset702_Other"
    (other / "labelsTs").mkdir(parents=True)
    for labels, is_fine in (({"background": 0, "infection": 1}, True), ({"background": 0, "infection": 3}, False),
                            ({"background": 0, "tumour": 1}, False)):
        (other / "dataset.json").write_text(json.dumps({"labels": labels}))
        moved = replace(evaluate, truth=other / "labelsTs")
        if is_fine:
            moved.begin()
        else:
            with pytest.raises(UserError, match="differ in the labels infection"):
                moved.begin()


def test_the_command_line_knows_what_the_study_types(planned_dataset, tmp_path):
    """Every option of the commands that make data and train what draws them."""
    from nnunet_synth.verbs import build_parser
    method = {"trainer": "SupervisedTrainer", "synthesizer": "fine"}
    runs, samples = with_methods(
        tmp_path, noise={**method, "data": "synthetic:3", "draw_for": "noise"},
        pool={**method, "data": "real+synthetic:2", "draw_for": "pool"},
        masks={**method, "data": "volumes", "draw_for": "paper-conditions"})
    args = {name: build_parser().parse_args(command[1:]) for name, command in samples.items()}
    assert {name: (found.source, found.volumes, found.paper_conditions, found.number)
            for name, found in args.items()} == {
        "mixed": ("labels", False, False, 3), "alone": ("labels", False, False, 3), "noise": ("noise", False, False, 3),
        "pool": ("pool", False, False, 2), "masks": ("labels", True, True, None)}
    trained = [build_parser().parse_args(run.commands()[0][1:]) for run in runs.values() if run.kind == "pretrain"]
    assert {(found.synthesizer, found.mask_source) for found in trained} == {("sean", None), ("um2i", None),
                                                                             (None, "v2um")}
