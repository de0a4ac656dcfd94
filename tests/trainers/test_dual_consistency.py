"""UDC: the step against its equations, the uncertainties, the symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers.dual_consistency import dual_consistency_step, random_symmetry, uncertainties
from tests.reference import dual_consistency as reference
from tests.trainers.test_cross_consistency import TinyAuxiliaries, TinyUNet
from tests.trainers.test_cross_pseudo import SOFTMAX, assert_same_gradients, gradients, softmax_loss


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x_l, x_u = (torch.randn(2, 1, 6, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    return x_l, torch.randint(0, 3, (2, 1, 6, 6), generator=rng), x_u


def quarter_turn(x: Tensor) -> Tensor:
    return torch.rot90(x, 1, (-2, -1))


def run_step(network: nn.Module, auxiliaries: nn.Module, batch: tuple, **options: object) -> dict:
    network.zero_grad(), auxiliaries.zero_grad()
    settings = {"loss": softmax_loss, "pseudo_labels": SOFTMAX, "backward": Tensor.backward, "consistency_weight": 0.7}
    return dual_consistency_step(network, auxiliaries, quarter_turn, *batch, **{**settings, **options})


def test_loss_is_the_equation(batch: tuple) -> None:
    network, auxiliaries = TinyUNet(), TinyAuxiliaries()
    x_l, y_l, x_u = batch
    results = run_step(network, auxiliaries, batch)
    logits, features = network(x_u)
    auxiliary = [answer.softmax(1).detach().numpy() for answer in auxiliaries(features, logits.argmax(1) > 0)]
    expected = reference.unlabelled_loss(
        logits.softmax(1).detach().numpy(), network(quarter_turn(x_u))[0].softmax(1).detach().numpy(), auxiliary,
        lambda array: np.rot90(array, 1, (-2, -1)))
    supervised = float(softmax_loss(network(x_l)[0], y_l).detach())
    assert float(results["loss"]) == pytest.approx(supervised + 0.7 * expected, rel=1e-9)
    assert float(results["loss_transformation"]) > 1e-4 and float(results["loss_feature"]) > 1e-4


def test_gradient_is_that_of_the_sum(batch: tuple) -> None:
    network, auxiliaries = TinyUNet(), TinyAuxiliaries()
    x_l, y_l, x_u = batch
    run_step(network, auxiliaries, batch)
    got = gradients(network, auxiliaries)

    network.zero_grad(), auxiliaries.zero_grad()
    logits, features = network(x_u)
    target = logits.detach().softmax(1)
    answers = [answer.softmax(1) for answer in auxiliaries(features, logits.argmax(1) > 0)]
    weight = (-sum(uncertainties([target, *answers], exclusive=True))).exp()
    turned = network(quarter_turn(x_u))[0].softmax(1)
    total = softmax_loss(network(x_l)[0], y_l)
    total = total + 0.7 * (quarter_turn(weight) * (turned - quarter_turn(target)).square()).mean()
    total = total + 0.35 * sum((weight * (answer - target).square()).mean() for answer in answers)
    total.backward()
    assert_same_gradients(got, gradients(network, auxiliaries))

    run_step(network, auxiliaries, batch, consistency_weight=0.0)
    without = gradients(network)
    network.zero_grad()
    softmax_loss(network(x_l)[0], y_l).backward()
    assert_same_gradients(without, gradients(network))
    assert max(float((one - other).abs().max()) for one, other in zip(got, without, strict=False)) > 1e-3


def test_uncertainties() -> None:
    rng = torch.Generator().manual_seed(0)
    predictions = torch.randn(4, 2, 3, 5, 5, generator=rng, dtype=torch.float64).softmax(2)
    for mine, expected in zip(uncertainties(predictions.unbind(), exclusive=True),
                              reference.uncertainties(predictions.numpy()), strict=True):
        np.testing.assert_allclose(mine[:, 0].numpy(), expected, atol=1e-12)
    same = predictions[:1].expand(3, -1, -1, -1, -1).unbind()
    assert float(uncertainties(same, exclusive=True)[0].max()) < 1e-12, "who all agree know no less than one of them"
    surely = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).transpose(1, 2)[..., None].unbind()     # two that contradict
    epistemic, aleatoric = uncertainties([each[None] for each in surely], exclusive=True)
    torch.testing.assert_close(epistemic.flatten(), torch.tensor([0.6931472]))
    assert not aleatoric.any()


def test_regions_have_uncertainties_of_their_own(batch: tuple) -> None:
    regions = PseudoLabels(regions=[(1, 2), (2,), (3,)], region_order=[1, 2, 3])
    results = run_step(TinyUNet(), TinyAuxiliaries(), batch, pseudo_labels=regions,
                       loss=lambda outputs, y: outputs.square().mean())
    p = [torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    epistemic, aleatoric = uncertainties(p, exclusive=False)
    assert epistemic.shape == aleatoric.shape == (2, 3, 4, 4)
    for region in range(3):
        binary = [torch.stack([each[:, region], 1 - each[:, region]], 1) for each in p]
        torch.testing.assert_close(epistemic[:, region], uncertainties(binary, exclusive=True)[0][:, 0])
    assert torch.isfinite(results["loss"])


@pytest.mark.parametrize(("size", "number"), [((4, 4), 7), ((4, 6), 3), ((3, 4, 4), 15)])
def test_every_symmetry_but_the_identity(size: tuple[int, ...], number: int) -> None:
    torch.manual_seed(0)
    x = torch.arange(float(np.prod(size))).view(1, 1, *size)
    seen = set()
    for _ in range(300):
        turned = random_symmetry(x.shape)(x)
        assert turned.shape == x.shape and torch.equal(turned.flatten().sort().values, x.flatten())
        seen.add(tuple(turned.flatten().tolist()))
    assert len(seen) == number and tuple(x.flatten().tolist()) not in seen
