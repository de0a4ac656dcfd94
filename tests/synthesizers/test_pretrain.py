"""The one training loop, with a toy synthesizer of two stages."""

import errno
import json
import os
import signal
from dataclasses import replace
from types import MethodType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import checked_weights, checkpoint
from nnunet_synth.synthesizers import pretrain as loop
from nnunet_synth.synthesizers.checkpoint import load_train_state
from nnunet_synth.synthesizers.ema import ExponentialMovingAverage, reestimate_batch_norm
from nnunet_synth.synthesizers.pretrain import _StageRun, pretrain
from tests.synthesizers.toy import ToySlices, build_toy


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def with_stages(synthesizer, change):
    """`change(stages)` is applied to the stages that the synthesizer hands out."""
    original = synthesizer.stages

    def stages(self, steps=None, perceptual=None):
        made = original(steps, perceptual)
        change(made)
        return made

    synthesizer.stages = MethodType(stages, synthesizer)
    return synthesizer


# ----------------------------------------------------------------------------------------------------------------------
# A whole run


def test_a_run_leaves_everything_it_promises(tmp_path):
    synthesizer = pretrain(build_toy(), ToySlices(), tmp_path, steps=20, samples_every=8, log_every=5)
    assert not synthesizer.training and synthesizer.meta.steps == 20
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "meta.json", "train_state.pt", "log.jsonl", "progress.png", "samples"}
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step_000008.png", "step_000010.png",
                                                                         "step_000018.png", "step_000020.png"}
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["step"]) for entry in log] == [("coarse", 5), ("coarse", 10), ("fine", 5),
                                                                  ("fine", 10)]
    assert {"generator", "reconstruction", "discriminator", "discriminator_accuracy"} <= set(log[0])
    picture = np.asarray(Image.open(tmp_path / "samples" / "step_000020.png"))
    assert picture.ndim == 3 and picture.std() > 10


def test_what_was_measured_is_kept(tmp_path):
    """A finished run that is continued keeps the log of both stages; one that never reached a checkpoint keeps its own
    under another name when it begins anew."""
    pretrain(build_toy(), ToySlices(), tmp_path, steps=20, samples_every=999, log_every=5)
    log = (tmp_path / "log.jsonl").read_bytes()
    assert len(log.splitlines()) == 4
    pretrain(build_toy(), ToySlices(), tmp_path, steps=20, samples_every=999, log_every=5, resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == log

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "log.jsonl").write_bytes(log)
    pretrain(build_toy(), ToySlices(), stopped, steps=4, samples_every=999, log_every=1)
    kept, = stopped.glob("log_*.jsonl")
    assert kept.read_bytes() == log and (stopped / "log.jsonl").read_bytes() != log


def test_training_learns(tmp_path):
    pretrain(build_toy(), ToySlices(), tmp_path, steps=120, samples_every=1000)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["reconstruction"] < 0.5 * log[0]["reconstruction"]


def test_same_seed_same_weights_and_the_callers_random_numbers_are_left_alone(tmp_path):
    before = torch.get_rng_state()
    first = pretrain(build_toy(), ToySlices(), tmp_path / "a", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)       # another global state must not matter
    second = pretrain(build_toy(), ToySlices(), tmp_path / "b", seed=3)
    other = pretrain(build_toy(), ToySlices(), tmp_path / "c", seed=4)
    assert equal_weights(first, second) and not equal_weights(first, other)


def test_pictures_and_checkpoints_on_the_way_change_nothing(tmp_path):
    often = pretrain(build_toy(), ToySlices(), tmp_path / "often", steps=8, samples_every=1, checkpoint_every=1)
    never = pretrain(build_toy(), ToySlices(), tmp_path / "never", steps=8, samples_every=99, checkpoint_every=99)
    assert equal_weights(often, never)


def keeping(shares, seed=0):
    """A toy whose first stage keeps models."""
    return with_stages(build_toy(seed), lambda stages: setattr(stages[0], "kept_shares", shares))


def test_kept_models_stay_beside_the_final_one(tmp_path):
    whole = pretrain(keeping((0.4, 1.0)), ToySlices(), tmp_path / "whole", steps=10)
    assert list(checkpoint.list_checkpoints(tmp_path / "whole")) == ["step_000002", "final"]
    assert equal_weights(whole, pretrain(build_toy(), ToySlices(), tmp_path / "none", steps=10))
    assert list(checkpoint.list_checkpoints(tmp_path / "none")) == ["final"]

    # It is the averaged model of that step, as a checkpoint of then holds it.
    with pytest.raises(KeyboardInterrupt):
        pretrain(interrupted_after(keeping((0.4,)), 2), ToySlices(), tmp_path / "cut", steps=10)
    kept = checkpoint.kept_checkpoint(tmp_path / "whole", 2)
    then = tmp_path / "cut" / "model.safetensors"
    assert (kept / "model.safetensors").read_bytes() == then.read_bytes()
    meta = checkpoint.load_meta(kept)
    assert meta.steps == 2 and meta.metrics == {"kept": True} and "kept" not in whole.meta.metrics

    # A run that is resumed before a model was due keeps the same one.
    resumed = pretrain(keeping((0.8,), seed=99), ToySlices(), tmp_path / "cut", steps=10, resume=True)
    assert equal_weights(whole, resumed)
    pretrain(keeping((0.8,)), ToySlices(), tmp_path / "later", steps=10)
    assert (tmp_path / "cut" / "checkpoints" / "step_000004" / "model.safetensors").read_bytes() == \
        (tmp_path / "later" / "checkpoints" / "step_000004" / "model.safetensors").read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# Resume


@pytest.mark.parametrize("stop_after", [2, 5, 9])       # inside stage 1, at its end, inside stage 2
def test_a_resumed_run_is_bit_identical(tmp_path, stop_after):
    whole = pretrain(build_toy(), ToySlices(), tmp_path / "whole", steps=10)

    with pytest.raises(KeyboardInterrupt):
        pretrain(interrupted_after(build_toy(), stop_after), ToySlices(), tmp_path / "cut", steps=10)
    assert {"model.safetensors", "meta.json", "train_state.pt"} <= {p.name for p in (tmp_path / "cut").iterdir()}
    assert json.loads((tmp_path / "cut" / "meta.json").read_text())["steps"] == stop_after
    torch.rand(3)
    resumed = pretrain(build_toy(seed=99), ToySlices(), tmp_path / "cut", steps=10, resume=True)

    assert equal_weights(whole, resumed)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "cut"
                                                                       / "model.safetensors").read_bytes()
    steps = [(entry["stage"], entry["step"]) for entry in
             map(json.loads, (tmp_path / "cut" / "log.jsonl").read_text().splitlines())]
    assert steps == sorted(set(steps)) and steps[-1] == ("fine", 5)


def interrupted_after(synthesizer, step):
    """Sends SIGINT while the step's discriminator loss is computed, as Ctrl-C would."""
    done = []

    def change(stages):
        for stage in stages:
            original = stage.discriminator_loss

            def loss(batch, original=original):
                done.append(1)
                if len(done) == step:
                    os.kill(os.getpid(), signal.SIGINT)
                return original(batch)

            stage.discriminator_loss = loss

    return with_stages(synthesizer, change)


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    pretrain(build_toy(), ToySlices(), tmp_path, steps=2)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_resume_refuses_other_settings_and_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="nothing to continue"):
        pretrain(build_toy(), ToySlices(), tmp_path, resume=True)
    pretrain(build_toy(), ToySlices(), tmp_path, steps=4)
    with pytest.raises(UserError, match="seed was 0, is 1"):
        pretrain(build_toy(), ToySlices(), tmp_path, steps=4, seed=1, resume=True)
    with pytest.raises(UserError, match="stages was"):
        pretrain(build_toy(), ToySlices(), tmp_path, steps=6, resume=True)
    with pytest.raises(UserError, match="config was .*8.*, is .*9"):
        pretrain(build_toy(width=9), ToySlices(), tmp_path, steps=4, resume=True)
    other_split = build_toy()
    other_split.meta = replace(other_split.meta, train_case_ids=[f"case {number}" for number in range(99)])
    with pytest.raises(UserError, match="training cases was .*toy.*, is .*case 0") as error:
        pretrain(other_split, ToySlices(), tmp_path, steps=4, resume=True)
    assert len(str(error.value)) < 400


def test_a_finished_run_resumed_trains_no_more(tmp_path):
    done = pretrain(build_toy(), ToySlices(), tmp_path, steps=4)
    slices = ToySlices()
    again = pretrain(build_toy(seed=5), slices, tmp_path, steps=4, resume=True)
    assert equal_weights(done, again) and slices.sampled == 6       # the gallery's conditions only


# ----------------------------------------------------------------------------------------------------------------------
# What is trained and what is not


def test_only_the_stages_generator_changes_and_requires_grad_is_restored(tmp_path):
    synthesizer = build_toy()
    synthesizer.head.bias.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in synthesizer.parameters()]
    before = {name: tensor.clone() for name, tensor in synthesizer.state_dict().items()}
    pretrain(synthesizer, ToySlices(), tmp_path, steps=6)
    after = synthesizer.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed & {"scale.weight", "scale.bias"} == set()
    assert {"body.0.weight", "head.weight", "noise_strength"} <= changed
    assert [parameter.requires_grad for parameter in synthesizer.parameters()] == wanted


def test_the_discriminator_gets_no_gradient_from_the_generators_step():
    run = make_run(build_toy())
    seen = []
    original = run.stage.discriminator_loss

    def discriminator_loss(batch):
        seen.append(run.stage.discriminator.weight.grad)
        return original(batch)

    run.stage.discriminator_loss = discriminator_loss
    before = run.stage.discriminator.weight.clone()
    run.step(0, run.stage.sample(run.slices, np.random.default_rng(0)))
    assert seen == [None] and not torch.equal(before, run.stage.discriminator.weight)


def make_run(synthesizer, num_steps=4):
    run = _StageRun(synthesizer, synthesizer.stages(2 * num_steps)[0], 0, ToySlices(), 0, torch.device("cpu"))
    run._train_mode()
    return run


# ----------------------------------------------------------------------------------------------------------------------
# Averaged weights


def test_ema_equals_its_closed_form():
    module = nn.Linear(1, 1, bias=False)
    ema = ExponentialMovingAverage(module, max_decay=0.4)
    weights = [2.0, -1.0, 5.0, 3.0, 7.0, 4.0, 8.0, 1.0]
    start = module.weight.item()
    for step, weight in enumerate(weights):
        module.weight.data.fill_(weight)
        ema.update(step)
    decays = [min(0.4, (1 + t) / (10 + t)) for t in range(len(weights))]
    assert decays[-1] == 0.4 and decays[0] == 0.1       # the warm-up and its end are both met
    # avg = Π d · start + Σ_t (1 − d_t) Π_{s>t} d_s · w_t
    expected = np.prod(decays) * start + sum((1 - decays[t]) * np.prod(decays[t + 1:]) * weight
                                             for t, weight in enumerate(weights))
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_ema_in_place_gives_weights_and_buffers_back():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    ema = ExponentialMovingAverage(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with ema.in_place():
        assert torch.equal(module[0].weight, before["0.weight"] - 1)
        module(torch.randn(2, 1, 4, 4))         # moves the running statistics
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_batch_statistics_are_those_of_the_averaged_weights():
    norm = nn.BatchNorm2d(3, momentum=0.1)
    norm.running_mean.fill_(float("nan"))       # what a skipped, non-finite step leaves behind
    batches = list(torch.randn(5, 4, 3, 8, 8) * 2 + 1)
    reestimate_batch_norm(norm, batches, norm)
    per_batch = torch.stack(batches).transpose(1, 2).flatten(2)
    torch.testing.assert_close(norm.running_mean, per_batch.mean(2).mean(0))
    torch.testing.assert_close(norm.running_var, per_batch.var(2).mean(0))
    assert norm.momentum == 0.1


def test_the_model_on_disk_is_the_averaged_one(tmp_path):
    trained = []

    def change(stages):
        for stage in stages:
            original = stage.generator_loss

            def loss(batch, stage=stage, original=original):
                trained.append([parameter.detach().clone() for parameter in stage.generator.parameters()])
                return original(batch)

            stage.generator_loss = loss

    synthesizer = with_stages(build_toy(), lambda stages: (stages.pop(), change(stages)))
    pretrain(synthesizer, ToySlices(), tmp_path, steps=12)
    last_raw, final = trained[5], list(synthesizer.stages(12)[0].generator.parameters())
    assert not any(torch.equal(raw, average) for raw, average in zip(last_raw, final, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# Not finite


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_step_that_is_not_finite_is_skipped(network):
    run = make_run(build_toy())
    batch = run.stage.sample(run.slices, np.random.default_rng(0))
    run.step(0, dict(batch))                    # Adam has momentum now: an unguarded step would move the weights
    method = f"{network}_loss"
    original = getattr(run.stage, method)
    setattr(run.stage, method, lambda batch: (original(batch)[0] * float("inf"), {}))
    module = getattr(run.stage, network)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    average = {name: tensor.clone() for name, tensor in run.ema.average.items()}
    run.step(1, dict(batch))
    assert all(torch.equal(x, y) for x, y in zip(before, module.parameters(), strict=True))
    assert all(torch.equal(average[name], run.ema.average[name]) for name in average)
    assert run.skipped == run.skipped_in_a_row == 1
    setattr(run.stage, method, original)
    run.step(2, dict(batch))
    assert (run.skipped, run.skipped_in_a_row) == (1, 0)
    assert not all(torch.equal(x, y) for x, y in zip(before, module.parameters(), strict=True))


def test_an_infinite_gradient_under_a_finite_loss_is_skipped_too():
    run = make_run(build_toy())
    run.stage.generator_loss = lambda batch: (torch.sqrt(run.synthesizer.noise_strength * 0).sum(), {})
    before = run.synthesizer.noise_strength.detach().clone()
    run.step(0, run.stage.sample(run.slices, np.random.default_rng(0)))
    assert run.skipped == 1 and torch.equal(before, run.synthesizer.noise_strength)


def test_twenty_in_a_row_end_the_run_with_one_line(tmp_path):
    def change(stages):
        stages[0].generator_loss = lambda batch: (stages[0].synthesizer.noise_strength.sum() * float("nan"), {})

    with pytest.raises(UserError, match="20 steps in a row.*not finite") as error:
        pretrain(with_stages(build_toy(), change), ToySlices(), tmp_path, steps=80)
    assert "\n" not in str(error.value)


def test_a_discriminator_that_is_always_right_is_reported_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "SUSPICIOUS_STEPS", 40)
    def change(stages):
        for stage in stages:
            original = stage.discriminator_loss
            stage.discriminator_loss = lambda batch, original=original: (original(batch)[0],
                                                                         {"discriminator_accuracy": torch.tensor(0.99)})

    pretrain(with_stages(build_toy(), change), ToySlices(), tmp_path, steps=100, samples_every=10_000)
    assert capsys.readouterr().err.count("a discriminator has been right") == 1


# ----------------------------------------------------------------------------------------------------------------------
# A full disk


@pytest.mark.parametrize("writer", ["save_file", "torch.save"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, writer):
    pretrain(build_toy(), ToySlices(), tmp_path, steps=4)
    files = ("model.safetensors", "meta.json", "train_state.pt")
    before = {name: (tmp_path / name).read_bytes() for name in files}

    def full(content, path, **kwargs):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    target, attribute = (torch, "save") if writer == "torch.save" else (checked_weights, "save_file")
    monkeypatch.setattr(target, attribute, full)
    with pytest.raises(OSError, match="No space left"):
        pretrain(build_toy(seed=1), ToySlices(), tmp_path, steps=4)
    assert before["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()
    if writer == "torch.save":
        assert before == {name: (tmp_path / name).read_bytes() for name in files}
    else:
        load_train_state(tmp_path)              # whole
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
