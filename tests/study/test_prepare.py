"""What a study adds to a planned dataset, on a real plan: the small network, folds, configurations."""

import json

import pytest

from nnunet_synth.commands.configure import configure
from nnunet_synth.errors import UserError
from nnunet_synth.study.graph import runs_of
from nnunet_synth.study.parse import parse_study
from nnunet_synth.study.place import Place
from nnunet_synth.study.run import Run

DATASET = "Dataset701_Tiny"


def study_of(**changes):
    dataset = {"id": 701, "folds": [0], "labelled": [2], **changes.pop("dataset", {})}
    return parse_study({"name": "small", "datasets": {"lungs": dataset}, "seeds": [0], "baseline": "supervised",
                        "budget": {"num_epochs": 3}, "methods": {"supervised": {"trainer": "SupervisedTrainer"},
                                                                 **changes.pop("methods", {})}, **changes})


@pytest.fixture
def prepare(planned_dataset, tmp_path):
    """prepare(study) does the preparations that need no command, up to the configurations; returns all runs."""
    def do(study) -> dict[str, Run]:
        runs = {run.id: run for run in runs_of(study, Place.find(tmp_path / "study", "cpu"))}
        for run in runs.values():
            if run.kind == "prepare" and not run.is_done() and not run.commands():
                run.begin()
                assert run.is_done(), run.id
        return runs
    return do


def plans(root):
    return json.loads((root / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").read_text())


def splits(root):
    return json.loads((root / "nnUNet_preprocessed" / DATASET / "splits_final.json").read_text())


def test_what_is_there_is_done(prepare):
    runs = prepare(study_of())
    for name in ("data", "plan", "preprocess-2d", "folds", "configure"):
        assert runs[f"prepare/lungs/{name}"].is_done()
    assert not runs["prepare/lungs/unlabelled-2d"].is_done()            # the pool was not preprocessed
    assert runs["prepare/lungs/unlabelled-2d"].commands()[0][:3] == ("nnunet_synth", "preprocess", "701")


def test_the_small_network_can_be_built_and_keeps_the_rest_of_the_plan(prepare, planned_dataset):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    network = {"name": "2d_mini", "features": [4, 8, 8], "patch_size": [24, 16], "batch_size": 3, "spacing": [9, 9]}
    before = plans(planned_dataset)
    prepare(study_of(dataset={"network": network, "folds": [0]}, methods={}))
    configuration = PlansManager(plans(planned_dataset)).get_configuration("2d_mini")
    assert (list(configuration.patch_size), configuration.batch_size, list(configuration.spacing)) == \
        ([24, 16], 3, [9, 9])
    assert configuration.data_identifier != "nnUNetPlans_2d"            # other voxels, another folder
    built = get_network_from_plans(configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
                                   configuration.network_arch_init_kwargs_req_import, 1, 2)
    assert sum(weights.numel() for weights in built.parameters()) < 20_000
    assert {key: value for key, value in plans(planned_dataset).items() if key != "configurations"} == \
        {key: value for key, value in before.items() if key != "configurations"}

    with pytest.raises(UserError, match="another configuration 2d_mini"):
        prepare(study_of(dataset={"network": {**network, "batch_size": 4}}))
    with pytest.raises(UserError, match="of 2d ones only"):
        prepare(study_of(dataset={"configuration": "3d_fullres", "network": {"name": "m", "features": [4]}}))


def test_the_folds_get_the_indices_that_were_said_before(prepare, planned_dataset):
    study = study_of(dataset={"folds": [1, 3], "labelled": ["25%", 2]},
                     methods={"all": {"trainer": "SupervisedTrainer", "labelled": "100%"}})
    runs = prepare(study)
    trainings = {run.id: run.fold for run in runs.values() if run.kind == "train"}
    assert trainings == {
        "train/supervised/lungs/f1_25pc/s0": 5, "train/supervised/lungs/f1_2/s0": 6, "train/all/lungs/f1_100pc/s0": 1,
        "train/supervised/lungs/f3_25pc/s0": 7, "train/supervised/lungs/f3_2/s0": 8, "train/all/lungs/f3_100pc/s0": 3}
    written = splits(planned_dataset)
    assert [split.get("name") for split in written] == [None] * 5 + ["f1_25%", "f1_2", "f3_25%", "f3_2"]
    assert len(written[6]["train"]) == 2 and written[6]["val"] == written[1]["val"]
    assert {run.id: run.fold for run in prepare(study).values() if run.kind == "train"} == trainings


def test_published_ratio_folds_are_used_and_joined(prepare, planned_dataset):
    cases = [f"phantom_tr_{number:03d}" for number in range(6)]
    file = planned_dataset / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    file.write_text(json.dumps([{"name": "sacps_20%", "train": cases[:1], "unlabelled": cases[1:4], "val": cases[4:]}]))
    study = study_of(dataset={"folds": ["sacps"], "labelled": ["20%"]},
                     methods={"all": {"trainer": "SupervisedTrainer", "labelled": "100%"}})
    runs = prepare(study)
    assert runs["train/supervised/lungs/sacps_20pc/s0"].fold == 0
    assert runs["train/all/lungs/sacps_100pc/s0"].fold == 1
    assert splits(planned_dataset)[1] == {"name": "sacps", "train": cases[:4], "val": cases[4:]}
    with pytest.raises(UserError, match="unknown fold other; splits_final.json of Dataset701_Tiny has 0 to 1 .*sacps"):
        prepare(study_of(dataset={"folds": ["other"]}))


def test_configurations_and_where_the_teacher_is(prepare, planned_dataset):
    study = study_of(synthesizers={"sean": {"preset": "tiny"}, "other": {"synthesizer": "sean", "preset": "tiny",
                                                                         "options": {"ngf": 4}}},
                     methods={"SA-CPS": {"trainer": "SACPSTrainer", "synthesizer": "sean",
                                         "settings": {"ramp_up_epochs": 2}},
                              "SA-ST (+SA-CPS)": {"trainer": "SASTTrainer", "synthesizer": "other",
                                                  "teacher": "SA-CPS"}})
    runs = prepare(study)
    made = plans(planned_dataset)["configurations"]
    assert made["2d_sa-cps_s0"]["inherits_from"] == "2d"
    block = made["2d_sa-cps_s0"]["nnunet_synth"]
    assert (block["num_epochs"], block["ramp_up_epochs"], block["seed"]) == (3, 2, 0)
    assert block["synthesizer_preset"] == "tiny"
    student = made["2d_sa-st-sa-cps_s0"]
    assert student["inherits_from"] == "2d_other"           # along which its synthesizer is found
    assert student["nnunet_synth"]["teacher"] == "SACPSTrainer__nnUNetPlans__2d_sa-cps_s0"
    assert student["nnunet_synth"]["synthesizer_options"] == {"ngf": 4}
    needs = runs["train/sa-st-sa-cps/lungs/f0_2/s0"].needs
    assert "train/sa-cps/lungs/f0_2/s0" in needs and "pretrain/other/2d/lungs/f0_2" in needs
    assert runs["pretrain/sean/2d/lungs/f0_2"].configuration == "2d"        # as by hand, and so shared
    assert runs["pretrain/other/2d/lungs/f0_2"].configuration == "2d_other"
    order = list(runs)
    assert all(order.index(need) < order.index(run.id) for run in runs.values() for need in run.needs)


def test_the_configuration_of_finished_runs_is_not_replaced(prepare, planned_dataset):
    results = planned_dataset / "nnUNet_results" / DATASET / "SupervisedTrainer__nnUNetPlans__2d_supervised_s0/fold_5"
    prepare(study_of())
    prepare(study_of(budget={"num_epochs": 4}))             # nothing was trained with it: replaced
    results.mkdir(parents=True)
    (results / "checkpoint_latest.pth").touch()
    with pytest.raises(UserError, match=r"2d_supervised_s0 .* other settings \(num_epochs 4 → 5\)"):
        prepare(study_of(budget={"num_epochs": 5}))


def test_a_configuration_made_by_hand_counts(prepare, planned_dataset):
    configure(701, "2d", "2d_supervised_s0", settings={"num_epochs": 3, "seed": 0})
    before = plans(planned_dataset)
    prepare(study_of())
    assert plans(planned_dataset) == before


def test_a_setting_that_is_newer_than_the_runs_changes_nothing(prepare, planned_dataset):
    prepare(study_of())
    results = planned_dataset / "nnUNet_results" / DATASET / "SupervisedTrainer__nnUNetPlans__2d_supervised_s0/fold_5"
    results.mkdir(parents=True)
    (results / "checkpoint_final.pth").touch()
    old = plans(planned_dataset)
    del old["configurations"]["2d_supervised_s0"]["nnunet_synth"]["momentum"]       # as if that version had none
    (planned_dataset / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").write_text(json.dumps(old))
    prepare(study_of())
    assert plans(planned_dataset) == old


@pytest.mark.parametrize(("clusters", "command"), [
    ({"method": "cs2"}, "--method cs2 --device cpu"),
    ({"method": "superpixel", "segmentation": "felzenszwalb", "segments": 9, "step": 2.5},
     "--method superpixel --segmentation felzenszwalb --segments 9 --step 2.5 --into cluster")])
def test_clusters_are_found_before_the_pool_is_preprocessed(planned_dataset, tmp_path, clusters, command):
    study = study_of(dataset={"clusters": clusters})
    runs = {run.id: run for run in runs_of(study, Place.find(tmp_path / "study", "cpu"))}
    order, find = list(runs), runs["prepare/lungs/clusters"]
    assert order.index(find.id) < order.index("prepare/lungs/unlabelled-2d")
    assert find.shown() == [f"nnunet_synth layouts 701 {command}"]
    assert not find.is_done()

    raw = planned_dataset / "nnUNet_raw" / DATASET
    for part in ("Tr", "Ul"):
        for image in (raw / f"images{part}").glob("*.nii.gz"):
            (raw / f"clusters{part}").mkdir(exist_ok=True)
            (raw / f"clusters{part}" / image.name.replace("_0000", "")).touch()
    content = json.loads((raw / "dataset.json").read_text())

    def declare(description):
        ours = {**content.get("nnunet_synth", {}), "clusters": description}
        (raw / "dataset.json").write_text(json.dumps({**content, "nnunet_synth": ours}))
    declare(study.datasets["lungs"].clusters.description)
    assert find.is_done()
    declare({**study.datasets["lungs"].clusters.description, "method": "other"})
    with pytest.raises(UserError, match=rf"made otherwise .*\(method other → {clusters['method']}\).*--overwrite"):
        find.is_done()
    declare(study.datasets["lungs"].clusters.description)
    next((raw / "clustersTr").iterdir()).unlink()
    assert not find.is_done()


def test_a_missing_dataset_says_how_it_is_made(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    study = study_of(dataset={"convert": "nnunet_synth convert mosmed X -d 701", "folds": ["sacps"]})
    first = runs_of(study, Place.find(tmp_path / "study", "cpu"))[0]
    assert not first.is_done()
    with pytest.raises(UserError, match=r"dataset 701 \(lungs\) is not in nnUNet_raw: .* nnunet_synth convert mosmed"):
        first.begin()


@pytest.mark.parametrize(("device", "set_by_user", "beside"), [
    ("cpu", None, {"nnUNet_n_proc_DA": "1"}), ("cpu", "0", {"nnUNet_n_proc_DA": "1"}), ("cpu", "4", {}),
    ("cuda", None, {}), ("cuda", "0", {"nnUNet_n_proc_DA": "1"}), ("cuda", "4", {})])
def test_planning_gets_workers_whatever_a_training_has(planned_dataset, tmp_path, monkeypatch, device, set_by_user,
                                                       beside):
    """nnU-Net's planner cannot bear nnUNet_n_proc_DA=0."""
    monkeypatch.delenv("nnUNet_n_proc_DA")
    if set_by_user is not None:
        monkeypatch.setenv("nnUNet_n_proc_DA", set_by_user)
    runs = {run.id: run for run in runs_of(study_of(), Place.find(tmp_path / "study", device))}
    assert runs["prepare/lungs/plan"].environment() == beside
    assert runs["prepare/lungs/preprocess-2d"].environment() == {}
