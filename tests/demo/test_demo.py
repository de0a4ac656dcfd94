"""The demo's own parts, its report from made-up results, and (slow) the whole job at the smallest size."""

import dataclasses
import json
import shutil

import pytest

from nnunet_synth.commands.demo import demo
from nnunet_synth.commands.evaluate import evaluate
from nnunet_synth.demo import job as job_module
from nnunet_synth.demo.job import (
    CONFIGURATION,
    QUICK,
    SMALL,
    TRAINER,
    Job,
    add_small_configuration,
    claim,
    draw,
    hidden_fold,
)
from nnunet_synth.demo.runner import Runner, Step
from nnunet_synth.demo.summary import write_summary
from nnunet_synth.errors import UserError
from tests.makers.training_log import LOG

TINY = dataclasses.replace(QUICK, num_labelled=6, num_unlabelled=2, num_test=2, num_visible=3, size=64, num_slices=4,
                           batch_size=2, pretraining_steps=4)


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path / "demo", TINY, seed=0, device="cpu")


def test_claim(job, tmp_path):
    claim(job)
    claim(job)
    with pytest.raises(UserError, match="other settings"):
        claim(dataclasses.replace(job, seed=1))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        claim(dataclasses.replace(job, folder=tmp_path / "thesis"))
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_device_that_is_not_there(tmp_path):
    import torch
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(UserError, match=f"--device {missing}"):
        demo(tmp_path / "demo", device=missing)
    assert not (tmp_path / "demo").exists()


def test_small_configuration(planned_dataset, tmp_path, monkeypatch):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from torch import nn
    planned, = (planned_dataset / "nnUNet_preprocessed").iterdir()
    monkeypatch.setattr(job_module, "DATASET", planned.name)
    add_small_configuration(Job(planned_dataset, TINY, 0, "cpu"))
    plans = PlansManager(str(planned / "nnUNetPlans.json"))
    configuration = plans.get_configuration(SMALL)
    assert configuration.batch_size == TINY.batch_size
    assert configuration.data_identifier == plans.get_configuration("2d").data_identifier
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    network = get_network_from_plans(configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
                                     configuration.network_arch_init_kwargs_req_import, 1, 2)
    assert isinstance(network, nn.Module) and sum(p.numel() for p in network.parameters()) < 500_000


def test_report(job, tmp_path):
    draw(job)
    draw(job)       # a second time it is there
    job.preprocessed.mkdir(parents=True)
    (job.preprocessed / "splits_final.json").write_text(json.dumps(
        [{"train": ["a"], "val": []}] * 5 + [{"train": ["a"], "val": [], "unlabelled": ["b", "c"]}]))
    assert hidden_fold(job) == 5
    for trainer in job.trainers:
        shutil.copytree(job.raw / "labelsTs", job.predictions(trainer))
        evaluate(job.predictions(trainer), job.raw / "labelsTs")
        job.results(trainer, 5).mkdir(parents=True)
        (job.results(trainer, 5) / "training_log_1.txt").write_text(LOG)
    (job.results(TRAINER, 5) / "semi_supervised.jsonl").write_text('{"epoch": 0, "loss_pseudo": 0.5}\n')
    synthesizer = job.results("sean", 5)
    synthesizer.mkdir(parents=True)
    (synthesizer / "meta.json").write_text(json.dumps({"metrics": {"kl": 0.125, "note": "text"}}))
    runner = Runner(job.folder, job.environment)
    runner.run(Step("say nothing", function=lambda: None))

    html = write_summary(job, runner).read_text()
    assert "say nothing" in html and f"nnUNet_raw</td><td>{job.folder}" in html
    content = json.loads((job.folder / "report.json").read_text())
    summary = content["sections"][1]["parts"][0]
    assert [row[0] for row in summary["rows"]] == list(job.trainers) and summary["rows"][0][1] == 1.0
    assert html.count("data:image/png") >= 4 and html.count("data:image/svg") == 3
    assert ["kl", 0.125] in content["sections"][4]["parts"][-1]["rows"]


@pytest.mark.slow
def test_the_whole_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job_module, "QUICK", TINY)
    report = demo(tmp_path / "demo", quick=True)
    assert report == tmp_path / "demo" / "report.html" and report.stat().st_size > 20_000
    content = json.loads(report.with_suffix(".json").read_text())
    assert all(0 <= row[1] <= 1 for row in content["sections"][1]["parts"][0]["rows"])
    said = capsys.readouterr().out
    assert f"nnUNetv2_train 900 {CONFIGURATION} 5 -tr {TRAINER}" in said and "The report" in said
    demo(tmp_path / "demo", quick=True)
    assert "$" not in capsys.readouterr().out       # no command is run a second time
