"""The competitors' steps on two processes (gloo, CPU), and compiled, against the same steps in one, on nnU-Net's U-Net.

What DDP could break: outputs that a term leaves out, features that leave the network by a hook, decoders of their own.
float64 and plain means over samples, and the same random numbers for each rank's share in both.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers.auxiliary_decoders import AuxiliaryDecoders
from nnunet_synth.trainers.averaged import AveragedNetwork
from nnunet_synth.trainers.co_training import co_training_step
from nnunet_synth.trainers.configured import unwrap
from nnunet_synth.trainers.cross_consistency import cross_consistency_step
from nnunet_synth.trainers.dual_consistency import dual_consistency_step, random_symmetry
from nnunet_synth.trainers.mean_teacher import Taught, mean_teacher_step
from nnunet_synth.trainers.perturbations import PerturbedCopies, RecordedFeatures, channel_dropout, with_input_noise
from nnunet_synth.trainers.weak_to_strong import StrongView, cutmix_boxes, weak_to_strong_step

RANKS, SAMPLES_PER_RANK, STEPS = 2, 2, 3
METHODS = ["mean teacher", "UniMatch", "CCT", "UDC", "self-ensembling"]

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")


def unet(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PlainConvUNet(1, 3, (4, 8, 8), nn.Conv2d, 3, (1, 2, 2), (1, 1, 1), 3, (1, 1), conv_bias=True,
                             norm_op=nn.InstanceNorm2d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
                             deep_supervision=True).double()


def cross_entropy(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    return sum(weight * F.cross_entropy(output, target[:, 0].long())
               for weight, output, target in zip((2 / 3, 1 / 3), outputs, targets, strict=True))


def batch(step: int, rank: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """x_l, y_l at two levels, x_u of one rank."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    shape = (SAMPLES_PER_RANK, 1, 8, 8)
    x_l, x_u = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    y_l = torch.randint(0, 3, shape, generator=generator)
    return x_l, [y_l, F.interpolate(y_l.double(), (4, 4), mode="nearest-exact").long()], x_u


class Method:
    """Networks and one accumulation of gradients; `wrap` is DDP or nothing."""

    def __init__(self, name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self.name = name
        bare = unet(0)
        self.copies = PerturbedCopies(bare, lambda z: channel_dropout(z, 0.5)) if name == "UniMatch" else None
        self.recorded = RecordedFeatures(bare) if name in ("CCT", "UDC") else None
        self.network = wrap(bare)
        self.networks = [self.network]
        if self.recorded is not None:
            self.networks.append(wrap(AuxiliaryDecoders([unet(seed).decoder for seed in range(1, 6)], 0.5)))
        if name == "self-ensembling":
            self.networks.append(wrap(unet(1)))
        self.averages = [AveragedNetwork(unet(seed), 0.9) for seed in (2, 3)]

    def encode_decode(self, x: Tensor) -> tuple[Any, list[Tensor]]:
        with self.recorded.recording():
            outputs = self.network(x)
        return outputs, self.recorded.take()

    def with_perturbed(self, x: Tensor, number: int) -> Any:
        with self.copies.of_last(number):
            return self.network(x)

    def accumulate(self, step: int, rank: int) -> None:
        torch.manual_seed(1000 + 10 * step + rank)
        x_l, y_l, x_u = batch(step, rank)
        common = {"loss": cross_entropy, "pseudo_labels": PseudoLabels(), "backward": Tensor.backward,
                  "consistency_weight": 3.0}
        if self.name == "mean teacher":
            mean_teacher_step(self.network, x_l, y_l, x_u, **common,
                              teach=lambda x: Taught(self.averages[0](with_input_noise(x, 0.1))))
        elif self.name == "UniMatch":
            views = [StrongView(x_u + 0.3 * torch.randn_like(x_u), cutmix_boxes(x_u.shape, torch.default_generator))
                     for _ in range(2)]
            weak_to_strong_step(self.network, x_l, y_l, x_u, views, with_perturbed=self.with_perturbed, confidence=0.4,
                                **common)
        elif self.name == "CCT":
            cross_consistency_step(self.encode_decode, self.networks[1], x_l, y_l, x_u, **common)
        elif self.name == "UDC":
            dual_consistency_step(self.encode_decode, self.networks[1], random_symmetry(x_u.shape), x_l, y_l, x_u,
                                  **common)
        else:
            co_training_step(self.networks, self.averages, x_l, y_l, x_u, pseudo_weight=0.5, **common)

    def train(self, ranks: list[int]) -> list[Tensor]:
        """Some steps with the samples of these ranks; the weights of all networks."""
        optimizers = [torch.optim.SGD(each.parameters(), 0.5, momentum=0.9) for each in self.networks]
        for step in range(STEPS):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            for rank in ranks:
                self.accumulate(step, rank)
            for each, optimizer in zip(self.networks, optimizers, strict=True):
                for parameter in each.parameters():
                    if parameter.grad is not None:
                        parameter.grad /= len(ranks)
                optimizer.step()
        return [parameter.detach().clone() for each in self.networks for parameter in unwrap(each).parameters()]


def on_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS,
                            timeout=timedelta(seconds=60))
    weights = {name: Method(name, DistributedDataParallel).train([rank]) for name in METHODS}
    torch.save(weights, Path(folder) / f"rank_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(on_one_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_equal_one_process(ranks: list[dict[str, list[Tensor]]], name: str) -> None:
    assert all(map(torch.equal, ranks[0][name], ranks[1][name]))
    method = Method(name, lambda network: network)
    initial = [parameter.detach().clone() for each in method.networks for parameter in each.parameters()]
    expected = method.train(list(range(RANKS)))
    torch.testing.assert_close(ranks[0][name], expected, rtol=1e-9, atol=1e-10)
    assert sum(not torch.equal(one, other) for one, other in zip(initial, expected, strict=True)) > len(initial) / 2


@pytest.mark.parametrize("name", ["UniMatch", "CCT"])
def test_compiled_networks_see_the_hooks(name: str) -> None:
    """nnU-Net compiles on CUDA. This backend traces alike, but needs no compiler."""
    def compiled(network: nn.Module) -> nn.Module:
        return network if isinstance(network, AuxiliaryDecoders) else torch.compile(network, backend="aot_eager")

    expected = Method(name, lambda network: network).train([0])
    torch.testing.assert_close(Method(name, compiled).train([0]), expected, rtol=1e-9, atol=1e-10)


def test_methods_differ(ranks: list[dict[str, list[Tensor]]]) -> None:
    """Otherwise all of the above could be supervised training."""
    first = [torch.cat([weight.flatten() for weight in ranks[0][name]])[:1000] for name in METHODS]
    for number, one in enumerate(first):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in first[number + 1:])
