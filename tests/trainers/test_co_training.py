"""Self-ensembling co-training: the step against its equation, and ensembles that move at the end of an epoch only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunet_synth.trainers import SelfEnsemblingTrainer
from nnunet_synth.trainers.co_training import co_training_step
from nnunet_synth.trainers.cross_pseudo import cross_pseudo_step
from tests.reference import co_training as reference
from tests.reference.mean_teacher import moving_average
from tests.trainers.runs import make_trainer
from tests.trainers.test_cross_pseudo import (
    ONE_REGION,
    SOFTMAX,
    TinyNetwork,
    assert_same_gradients,
    gradients,
    paper_loss,
    softmax_loss,
)

Networks = tuple[nn.Module, nn.Module, nn.Module, nn.Module]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x_l, x_u = (torch.randn(2, 1, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    return x_l, (torch.rand(2, 1, 8, 8, generator=rng) > 0.6).double(), x_u


@pytest.fixture
def networks() -> Networks:
    """Two networks and their ensembles."""
    return tuple(TinyNetwork(seed) for seed in range(1, 5))


def run_step(networks: Networks, batch: tuple, **options: object) -> dict:
    for each in networks:
        each.zero_grad()
    settings = {"loss": paper_loss, "pseudo_labels": ONE_REGION, "backward": Tensor.backward, "pseudo_weight": 0.4,
                "consistency_weight": 0.7}
    return co_training_step(networks[:2], networks[2:], *batch, **{**settings, **options})


def test_loss_is_the_equation(batch: tuple, networks: Networks) -> None:
    results = run_step(networks, batch)

    def probabilities(each: nn.Module):
        return lambda x: each(torch.from_numpy(x)).sigmoid().detach().numpy()

    expected = reference.loss(*map(probabilities, networks), *(part.numpy() for part in batch), tau=0.5,
                              pseudo_weight=0.4, consistency_weight=0.7)
    assert float(results["loss"]) == pytest.approx(expected, rel=1e-9)
    assert not torch.equal(results["y_1"], results["y_2"]), "or the pairing is not tested"


def test_gradient_is_that_of_the_sum_and_ensembles_get_none(batch: tuple, networks: Networks) -> None:
    run_step(networks, batch)
    first, second, *ensembles = networks
    got = gradients(first, second)
    assert all(parameter.grad is None for each in ensembles for parameter in each.parameters())
    for each in networks:
        each.zero_grad()
    x_l, y_l, x_u = batch
    y_1, y_2 = ((each(x_u).detach().sigmoid() >= 0.5).double() for each in (first, second))
    sum(paper_loss(each(x_l), y_l) + 0.4 * paper_loss(each(x_u), y)
        + 0.7 * (each(x_u).sigmoid() - past(x_u).sigmoid().detach()).square().mean()
        for each, y, past in ((first, y_2, ensembles[0]), (second, y_1, ensembles[1]))).backward()
    assert_same_gradients(got, gradients(first, second))


def test_without_consistency_it_is_cps_and_without_any_weight_supervised(batch: tuple, networks: Networks) -> None:
    first, second, *_ = networks
    run_step(networks, batch)
    whole = gradients(first, second)
    run_step(networks, batch, consistency_weight=0.0)
    got = gradients(first, second)
    for each in networks:
        each.zero_grad()
    cross_pseudo_step(first, second, *batch, loss=paper_loss, pseudo_labels=ONE_REGION, backward=Tensor.backward,
                      pseudo_weight=0.4)
    assert_same_gradients(got, gradients(first, second))
    run_step(networks, batch, consistency_weight=0.0, pseudo_weight=0.0)
    supervised = gradients(first, second)
    for one, other in ((whole, got), (got, supervised)):
        assert max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) > 1e-4
    for each in networks:
        each.zero_grad()
        paper_loss(each(batch[0]), batch[1]).backward()
    assert_same_gradients(supervised, gradients(first, second))


def test_deep_supervision(batch: tuple) -> None:
    """Pseudo-labels at each level, consistency at the finest."""
    networks = (*(TinyNetwork(seed, heads=3, levels=2) for seed in (1, 2)),
                *(TinyNetwork(seed, heads=3) for seed in (3, 4)))
    x_l, y_l, x_u = batch
    results = run_step(networks, (x_l, [y_l, y_l[..., 1::2, 1::2]], x_u), loss=softmax_loss, pseudo_labels=SOFTMAX)
    expected = sum((each(x_u)[0].softmax(1) - past(x_u).softmax(1)).square().mean()
                   for each, past in zip(networks[:2], networks[2:], strict=True))
    assert float(results["loss_consistency"]) == pytest.approx(float(expected.detach()))


def test_ensembles_average_the_ends_of_epochs(planned_dataset: Path) -> None:
    trainer = make_trainer(SelfEnsemblingTrainer, planned_dataset, seed=0, num_epochs=3, ensemble_decay=0.6)
    trainer.initialize()
    ends: list[list[float]] = []
    weights: list[float] = []
    end_epoch, step = trainer.on_train_epoch_end, trainer.train_step

    def on_train_epoch_end(outputs: list) -> None:
        end_epoch(outputs)
        ends.append([next(each.parameters()).flatten()[0].item() for each in (trainer.network, trainer.peer)])

    def train_step(batch: dict) -> dict:
        weights.append(trainer.consistency_weight())
        return step(batch)

    trainer.on_train_epoch_end, trainer.train_step = on_train_epoch_end, train_step
    trainer.run_training()
    for number, ensemble in enumerate(trainer.ensembles):
        assert ensemble.num_updates == 3
        got = next(ensemble.network.parameters()).flatten()[0].item()
        assert got == pytest.approx(moving_average([end[number] for end in ends], 0.6), abs=1e-6)
    assert weights[:2] == [0, 0] and all(weight > 0 for weight in weights[2:])
    assert trainer.epoch_log.read()[2]["loss_consistency"] > 0
