"""CCT: the step against the paper, the perturbations, and which weights the consistency trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.trainers import CCTTrainer
from nnunet_synth.trainers.auxiliary_decoders import context_mask, feature_drop, feature_noise, object_mask
from nnunet_synth.trainers.cross_consistency import cross_consistency_step
from nnunet_synth.trainers.perturbations import RecordedFeatures
from tests.reference import cross_consistency as reference
from tests.trainers.runs import make_trainer
from tests.trainers.test_cross_pseudo import SOFTMAX, assert_same_gradients, gradients, softmax_loss

# ----------------------------------------------------------------------------------------------------------------------
# The step


class TinyUNet(nn.Module):
    """One level of features."""

    def __init__(self, seed: int = 1, heads: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.decoder = nn.Conv2d(1, 4, 3, padding=1).double(), nn.Conv2d(4, heads, 1).double()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.encoder(x).tanh()
        return 3 * self.decoder(z), [z]


class TinyAuxiliaries(nn.Module):
    """Two decoders; the second one sees half the features, and none in the foreground."""

    def __init__(self, seed: int = 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.decoders = nn.ModuleList(nn.Conv2d(4, 3, 1).double() for _ in range(2))

    def forward(self, features: list[Tensor], foreground: Tensor) -> list[Tensor]:
        z, = features
        return [self.decoders[0](z), self.decoders[1](0.5 * z * ~foreground[:, None])]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x_l, x_u = (torch.randn(2, 1, 6, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    return x_l, torch.randint(0, 3, (2, 1, 6, 6), generator=rng), x_u


def run_step(network: nn.Module, auxiliaries: nn.Module, batch: tuple, **options: object) -> dict:
    network.zero_grad(), auxiliaries.zero_grad()
    settings = {"loss": softmax_loss, "pseudo_labels": SOFTMAX, "backward": Tensor.backward, "consistency_weight": 0.7}
    return cross_consistency_step(network, auxiliaries, *batch, **{**settings, **options})


def test_loss_is_the_papers(batch: tuple) -> None:
    network, auxiliaries = TinyUNet(), TinyAuxiliaries()
    x_l, y_l, x_u = batch
    results = run_step(network, auxiliaries, batch)
    logits, features = network(x_u)
    foreground = logits.argmax(1) > 0
    answers = [answer.softmax(1).detach().numpy() for answer in auxiliaries(features, foreground)]
    expected = reference.unsupervised_loss(logits.softmax(1).detach().numpy(), answers)
    supervised = float(softmax_loss(network(x_l)[0], y_l).detach())
    assert float(results["loss"]) == pytest.approx(supervised + 0.7 * expected, rel=1e-9) and 0 < foreground.sum() < 72
    assert torch.equal(results["y_u"] > 0, foreground)


def test_consistency_trains_encoder_and_auxiliaries_but_not_the_main_decoder(batch: tuple) -> None:
    network, auxiliaries = TinyUNet(), TinyAuxiliaries()
    x_l, y_l, x_u = batch
    run_step(network, auxiliaries, batch)
    got = gradients(network, auxiliaries)
    network.zero_grad(), auxiliaries.zero_grad()
    logits, features = network(x_u)
    target = logits.detach().softmax(1)
    answers = auxiliaries(features, logits.argmax(1) > 0)
    (softmax_loss(network(x_l)[0], y_l)
     + 0.35 * sum((answer.softmax(1) - target).square().mean() for answer in answers)).backward()
    assert_same_gradients(got, gradients(network, auxiliaries))

    run_step(network, auxiliaries, batch, consistency_weight=0.0)
    without = gradients(network, auxiliaries)
    difference = [float((one - other).abs().max()) for one, other in zip(got, without, strict=True)]
    names = [name for name, _ in [*network.named_parameters(), *auxiliaries.named_parameters()]]
    for name, change in zip(names, difference, strict=True):
        assert change < 1e-12 if name.startswith("decoder.") else change > 1e-6, name
    network.zero_grad()
    softmax_loss(network(x_l)[0], y_l).backward()
    assert_same_gradients(without[:4], gradients(network))


# ----------------------------------------------------------------------------------------------------------------------
# Perturbations


@pytest.fixture
def z() -> Tensor:
    return torch.randn(50, 8, 6, 6, generator=torch.Generator().manual_seed(0)).relu()


def test_noise_is_proportional_and_within_its_bounds(z: Tensor) -> None:
    torch.manual_seed(7)
    ratio = feature_noise(z, z)[z > 0] / z[z > 0]
    assert 0.7 <= float(ratio.min()) < 0.71 and 1.29 < float(ratio.max()) <= 1.3
    assert float(ratio.mean()) == pytest.approx(1, abs=0.01)


def test_drop_hides_exactly_the_most_active_pixels(z: Tensor) -> None:
    torch.manual_seed(0)
    dropped = feature_drop(z, z)
    for sample, result in zip(z, dropped, strict=True):
        kept = result.sum(0) > 0
        candidates = [reference.feature_drop(sample.numpy(), gamma) for gamma in np.linspace(0.6, 0.9, 301)]
        assert any(np.array_equal(result.numpy(), candidate) for candidate in candidates)
        assert 0 < kept.float().mean() < 1


def test_masks_are_each_others_complement(z: Tensor) -> None:
    foreground = torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    hidden, left = object_mask(z, foreground), context_mask(z, foreground)
    assert torch.equal(hidden + left, z)
    assert not (hidden * foreground).any() and not (left * ~foreground).any() and hidden.any() and left.any()


def test_every_kind_changes_the_features_of_every_level(planned_dataset: Path) -> None:
    trainer = make_trainer(CCTTrainer, planned_dataset, seed=0, num_auxiliary_decoders=7)
    trainer.initialize()
    _, features = trainer.encode_decode(torch.randn(2, 1, 32, 32))
    assert [len(z.shape) for z in features] == [4] * 3 and all(z.requires_grad for z in features)
    foreground = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    foreground[..., :4] = True
    for perturb in trainer.auxiliaries.perturbations:
        assert not torch.equal(perturb(features[-1], foreground), features[-1])
    assert trainer.auxiliaries.perturbations[5] is trainer.auxiliaries.perturbations[0], "in turn"
    answers = trainer.auxiliaries(features, torch.ones(2, 32, 32, dtype=torch.bool))
    assert [tuple(answer.shape) for answer in answers] == [(2, 2, 32, 32)] * 7


# ----------------------------------------------------------------------------------------------------------------------
# The trainer


def test_a_step_moves_everything_once_and_keeps_no_features(planned_dataset: Path) -> None:
    trainer = make_trainer(CCTTrainer, planned_dataset, seed=0, ramp_up_epochs=0)
    trainer.on_train_start()
    before = {name: value.detach().clone() for name, value in trainer.auxiliaries.named_parameters()}
    trainer.train_step(next(trainer.dataloader_train))
    moved = {name for name, value in trainer.auxiliaries.named_parameters() if not torch.equal(value, before[name])}
    learning = {name for name, parameter in trainer.auxiliaries.named_parameters() if parameter.requires_grad}
    assert moved <= learning and {name.split(".")[1] for name in moved} == {"0", "1", "2", "3", "4"}
    assert not any("encoder" in name for name in before) and trainer.recorded.features == []
    trainer.network(torch.zeros(1, 1, 32, 32))
    assert trainer.recorded.features == [], "validation does not record"


def test_schedule_and_ramp(planned_dataset: Path) -> None:
    trainer = make_trainer(CCTTrainer, planned_dataset, num_epochs=20)
    trainer.initialize()
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    assert trainer.consistency_weight() == 30
    assert trainer.auxiliaries_optimizer.param_groups[0]["lr"] == trainer.optimizer.param_groups[0]["lr"] < 0.01
    trainer.current_epoch = 0
    assert trainer.consistency_weight() < 0.3


def test_a_network_that_is_no_unet_is_refused() -> None:
    with pytest.raises(UserError, match="use a plan with a U-Net"):
        RecordedFeatures(nn.Linear(1, 1))
