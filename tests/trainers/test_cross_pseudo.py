"""The step of SA-CPS against the paper's equations, and its gradients against autograd on the plain sum."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.synthesizers.base import SynthResult
from nnunet_synth.trainers.cross_pseudo import cross_pseudo_step
from tests.reference import cross_pseudo as reference

ONE_REGION = PseudoLabels(threshold=0.5, regions=[(1,)], region_order=[1])
SOFTMAX = PseudoLabels()


def paper_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 6 in torch."""
    target = target.to(logits.dtype)
    p = logits.sigmoid()
    dice = 1 - 2 * (p * target).sum() / (p.sum() + target.sum() + 1e-5)
    return F.binary_cross_entropy(p, target) + dice


def softmax_loss(outputs: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
    """Cross entropy, averaged over the levels of deep supervision."""
    outputs, target = ([part] if isinstance(part, Tensor) else part for part in (outputs, target))
    return sum(F.cross_entropy(output, level[:, 0].long()) for output, level in zip(outputs, target, strict=True))


class TinyNetwork(nn.Module):
    """One convolution; with `levels`, deep supervision at half resolution."""

    def __init__(self, seed: int, heads: int = 1, levels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, heads, 3, padding=1).double()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits = self.conv(x) * 3
        return logits if self.levels == 1 else [logits, F.avg_pool2d(logits, 2)]


class PaintLabels:
    """A decoder that writes the label into the image, so that pairings can be read off it; remembers its calls."""

    def __init__(self, ok: list[bool] | None = None) -> None:
        self.calls: list[Tensor] = []
        self.ok = ok

    def __call__(self, labels: Tensor) -> SynthResult:
        self.calls.append(labels)
        image = (labels.double() * 2 - 0.7)[:, None]
        ok = torch.ones(len(labels), dtype=torch.bool) if self.ok is None else torch.tensor(self.ok)
        return SynthResult(image=image, label=labels.clone(), ok=ok)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x_l = torch.randn(2, 1, 8, 8, generator=rng, dtype=torch.float64)
    y_l = (torch.rand(2, 1, 8, 8, generator=rng) > 0.6).double()
    x_u = torch.randn(2, 1, 8, 8, generator=rng, dtype=torch.float64)
    return x_l, y_l, x_u


def run_step(network: nn.Module, peer: nn.Module, batch: tuple, **options: object) -> dict:
    settings = {"loss": paper_loss, "pseudo_labels": ONE_REGION, "backward": Tensor.backward, "pseudo_weight": 0.5,
                "synthetic_weight": 0.5, "synthesize": None}
    for each in (network, peer):
        each.zero_grad()
    return cross_pseudo_step(network, peer, *batch, **{**settings, **options})


def gradients(*networks: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for network in networks for parameter in network.parameters()]


def assert_same_gradients(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_loss_is_equation_14(batch: tuple) -> None:
    network, peer = TinyNetwork(1), TinyNetwork(2)
    results = run_step(network, peer, batch, synthesize=PaintLabels())

    def probabilities(each: nn.Module):
        return lambda x: each(torch.from_numpy(x)).sigmoid().detach().numpy()

    expected = reference.sa_cps_loss(probabilities(network), probabilities(peer), *(part.numpy() for part in batch),
                                     decode=lambda y: y * 2 - 0.7, tau=0.5, weight=0.5)
    assert float(results["loss"]) == pytest.approx(expected, rel=1e-9)
    assert not torch.equal(results["y_1"], results["y_2"]), "the peers must disagree, or the pairing is not tested"


def test_gradient_is_that_of_the_sum(batch: tuple) -> None:
    network, peer = TinyNetwork(1), TinyNetwork(2)
    run_step(network, peer, batch, synthesize=PaintLabels())
    got = gradients(network, peer)

    x_l, y_l, x_u = batch
    for each in (network, peer):
        each.zero_grad()
    y_1, y_2 = ((each(x_u).detach().sigmoid() >= 0.5).double() for each in (network, peer))
    total = sum(paper_loss(each(x_l), y_l) + 0.5 * (paper_loss(each(x_u), y) + paper_loss(each(y * 2 - 0.7), y))
                for each, y in ((network, y_2), (peer, y_1)))
    total.backward()
    assert_same_gradients(got, gradients(network, peer))


def test_without_synthetic_weight_it_is_cps(batch: tuple) -> None:
    network, peer = TinyNetwork(1), TinyNetwork(2)
    run_step(network, peer, batch, synthesize=PaintLabels(), synthetic_weight=0.0)
    with_zero_weight = gradients(network, peer)
    run_step(network, peer, batch, synthesize=None)
    assert_same_gradients(with_zero_weight, gradients(network, peer))


def test_without_any_weight_it_is_supervised(batch: tuple) -> None:
    network, peer = TinyNetwork(1), TinyNetwork(2)
    run_step(network, peer, batch, synthesize=PaintLabels(), pseudo_weight=0.0, synthetic_weight=0.0)
    got = gradients(network, peer)
    x_l, y_l, _ = batch
    for each in (network, peer):
        each.zero_grad()
        paper_loss(each(x_l), y_l).backward()
    assert_same_gradients(got, gradients(network, peer))


def test_each_weight_changes_the_gradient(batch: tuple) -> None:
    """Otherwise the three tests above could pass on a step that ignores its terms."""
    network, peer = TinyNetwork(1), TinyNetwork(2)
    seen = []
    for pseudo, synthetic in ((0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (0.0, 0.0)):
        run_step(network, peer, batch, synthesize=PaintLabels(), pseudo_weight=pseudo, synthetic_weight=synthetic)
        seen.append(torch.cat([gradient.ravel() for gradient in gradients(network)]))
    for index, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-4 for other in seen[index + 1:])


def test_synthetic_images_pair_with_the_other_networks_labels(batch: tuple) -> None:
    """x̂₁ is drawn from y₂ᵖ and supervises network 1 with y₂ᵖ; x̂₂ likewise from y₁ᵖ (Eq. 10 and 12)."""
    network, peer, decoder = TinyNetwork(1), TinyNetwork(2), PaintLabels()
    pairs = []

    def spying_loss(logits: Tensor, target: Tensor) -> Tensor:
        pairs.append((logits.detach(), target.detach().clone()))
        return paper_loss(logits, target)

    results = run_step(network, peer, batch, synthesize=decoder, loss=spying_loss)
    asked, = decoder.calls
    assert torch.equal(asked, torch.cat([results["y_2"], results["y_1"]]))
    synthetic = results["synthetic"]
    for position, each, label in ((0, network, results["y_2"]), (1, peer, results["y_1"])):
        logits, target = pairs[-2 + position]
        assert torch.equal(target[:, 0].long(), label)
        assert torch.equal(synthetic.image.chunk(2)[position][:, 0], (label.double() * 2 - 0.7))
        torch.testing.assert_close(logits, each(synthetic.image.chunk(2)[position]))


def test_the_two_label_sets_share_no_storage(batch: tuple) -> None:
    """The released code changed one network's labels by drawing from the other's (synthesizers.md §0.2)."""
    def vandal(labels: Tensor) -> SynthResult:
        result = PaintLabels()(labels)
        labels.zero_()
        return result

    network, peer = TinyNetwork(1), TinyNetwork(2)
    results = run_step(network, peer, batch, synthesize=vandal)
    expected = run_step(network, peer, batch, synthesize=PaintLabels())
    for key in ("y_1", "y_2"):
        assert torch.equal(results[key], expected[key])
    results["y_1"].zero_()
    assert torch.equal(results["y_2"], expected["y_2"]) and torch.equal(results["synthetic"].label[2:], expected["y_1"])


def test_pseudo_labels_carry_no_gradient(batch: tuple) -> None:
    """Network 1 learns from the peer's label, not the peer from network 1's mistakes on it: ∂L/∂peer of the terms of
    network 1 is zero, so the peer's gradient depends on network 1 through hard labels only."""
    network, peer = TinyNetwork(1), TinyNetwork(2)
    run_step(network, peer, batch)
    before = gradients(peer)
    nudged = copy.deepcopy(network)
    with torch.no_grad():
        nudged.conv.weight.add_(1e-9)       # far too little to flip a label
    run_step(nudged, peer, batch)
    assert all(torch.equal(one, other) for one, other in zip(before, gradients(peer), strict=True))


def test_samples_that_could_not_be_drawn_are_left_out(batch: tuple) -> None:
    network, peer = TinyNetwork(1, heads=2), TinyNetwork(2, heads=2)
    x_l, y_l, x_u = batch
    options = {"loss": softmax_loss, "pseudo_labels": SOFTMAX, "pseudo_weight": 0.0, "synthetic_weight": 1.0}
    run_step(network, peer, batch, synthesize=PaintLabels(ok=[True, False, True, True]), **options)
    got = gradients(network, peer)
    for each in (network, peer):
        each.zero_grad()
    labels = [each(x_u).argmax(1) for each in (peer, network)]
    for each, label, kept in ((network, labels[0], [0]), (peer, labels[1], [0, 1])):
        image = (label.double() * 2 - 0.7)[:, None]
        (softmax_loss(each(x_l), y_l) + softmax_loss(each(image[kept]), label[kept][:, None])).backward()
    assert_same_gradients(got, gradients(network, peer))

    results = run_step(network, peer, batch, synthesize=PaintLabels(ok=[False] * 4), **options)
    assert float(results["loss_synthetic"]) == 0


def test_deep_supervision_gets_targets_of_each_level(batch: tuple) -> None:
    network, peer = TinyNetwork(1, heads=3, levels=2), TinyNetwork(2, heads=3, levels=2)
    x_l, y_l, x_u = batch
    targets = [y_l, F.interpolate(y_l, scale_factor=0.5, mode="nearest-exact")]
    results = run_step(network, peer, (x_l, targets, x_u), loss=softmax_loss, pseudo_labels=SOFTMAX,
                       synthesize=PaintLabels())
    pseudo = sum(softmax_loss(each(x_u), [y[:, None], y[:, None, :, :][..., 1::2, 1::2]])
                 for each, y in ((network, results["y_2"]), (peer, results["y_1"])))
    assert float(results["loss_pseudo"]) == pytest.approx(float(pseudo.detach()))


def test_one_forward_serves_all(planned_dataset) -> None:
    """nnU-Net has no dropout and uses instance norm: pseudo-labels of the joint forward in train mode are those of a
    forward of the unlabelled samples alone in eval mode."""
    from nnunet_synth.trainers import CPSTrainer
    from tests.trainers.runs import make_trainer
    trainer = make_trainer(CPSTrainer, planned_dataset, seed=0)
    trainer.initialize()
    x_l, x_u = torch.randn(2, 1, 32, 32), torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        joint = trainer.network.train()(torch.cat([x_l, x_u]))[0][2:]
        alone = trainer.network.eval()(x_u)[0]
    torch.testing.assert_close(joint, alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(SOFTMAX.from_logits(joint), SOFTMAX.from_logits(alone))


def test_terms_are_freed_one_after_another(batch: tuple) -> None:
    """The synthetic images are drawn only when the graphs on real images are gone: that is what keeps the peak low."""
    network, peer = TinyNetwork(1), TinyNetwork(2)
    order = []

    def backward(loss: Tensor) -> None:
        order.append("backward")
        loss.backward()

    def decode(labels: Tensor) -> SynthResult:
        order.append("synthesize")
        return PaintLabels()(labels)

    run_step(network, peer, batch, synthesize=decode, backward=backward, autocast=nullcontext)
    assert order == ["backward", "backward", "synthesize", "backward", "backward"]


