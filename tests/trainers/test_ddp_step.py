"""The steps of cross pseudo supervision and self-training on two processes (gloo, CPU) against the same step in one.

Everything is float64 and the loss a plain mean over samples, so that two ranks with half the batch each must end with
the weights of one process with all of it, up to rounding.
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
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.synthesizers.base import SynthResult
from nnunet_synth.trainers.cross_pseudo import cross_pseudo_step
from nnunet_synth.trainers.self_training import self_training_step

RANKS, SAMPLES_PER_RANK, STEPS = 2, 2, 3
METHODS = {"cross_pseudo": 2, "self_training": 1}       # how many networks learn

# Which synthetic images may enter the loss, [rank][cat(of y2, of y1)], the first half for a single network; None = no
# synthesis at all.
YES, NO = True, False
SCENARIOS: dict[str, list[list[bool]] | None] = {
    "without_synthesis": None,
    "all_usable": [[YES] * 4, [YES] * 4],
    "half_usable": [[NO, YES, YES, NO], [YES, NO, NO, YES]],
    "none_usable_on_one_rank": [[YES] * 4, [NO] * 4],
}

CASES = [(method, scenario) for method in METHODS for scenario in SCENARIOS]

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")


class TwoLevels(nn.Module):
    """A network as nnU-Net's are to the step: instance norm, and outputs at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU())
        self.fine, self.coarse = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.features(x)
        return [self.fine(features), self.coarse(F.avg_pool2d(features, 2))]


def cross_entropy(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    return sum(weight * F.cross_entropy(output, target[:, 0].long())
               for weight, output, target in zip((2 / 3, 1 / 3), outputs, targets, strict=True))


def batch(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_l, y_l, x_u and a teacher's y_p of all ranks."""
    generator = torch.Generator().manual_seed(step)
    shape = (RANKS * SAMPLES_PER_RANK, 1, 8, 8)
    x_l, x_u = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    y_l, y_p = (torch.randint(0, 3, shape, generator=generator) for _ in range(2))
    return x_l, y_l, x_u, y_p[:, 0]


def synthesizer(x_u: Tensor, usable: list[bool]) -> Callable[[Tensor], SynthResult]:
    """Images that depend on label and scan, as a synthesizer's do."""
    def synthesize(labels: Tensor) -> SynthResult:
        image = 0.3 * torch.cat([x_u] * (len(labels) // len(x_u))) + labels[:, None] - 1
        return SynthResult(image=image, label=labels.clone(), ok=torch.tensor(usable))
    return synthesize


def networks_of(method: str) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [TwoLevels().double() for _ in range(METHODS[method])]


def backward_of(networks: list[nn.Module], step: int, ranks: slice, usable: list[bool] | None) -> dict[str, Any]:
    """One accumulation of gradients with the samples of some ranks."""
    samples = slice(ranks.start * SAMPLES_PER_RANK, ranks.stop * SAMPLES_PER_RANK)
    x_l, y_l, x_u, y_p = (part[samples] for part in batch(step))
    targets = [y_l, F.interpolate(y_l.double(), (4, 4), mode="nearest-exact").long()]
    options = {"loss": cross_entropy, "pseudo_labels": PseudoLabels(), "backward": Tensor.backward,
               "pseudo_weight": 0.5, "synthetic_weight": 0.7,
               "synthesize": None if usable is None else synthesizer(x_u, usable[:len(networks) * len(x_u)])}
    if len(networks) == 2:
        return cross_pseudo_step(*networks, x_l, targets, x_u, **options)
    return self_training_step(*networks, x_l, targets, x_u, y_p, **options)


def train(networks: list[nn.Module], accumulate: Callable[[int], list[dict[str, Any]]]) -> dict[str, Any]:
    """Some steps, each network by its own optimizer; weights and losses."""
    optimizers = [torch.optim.SGD(each.parameters(), 0.5, momentum=0.9, nesterov=True) for each in networks]
    losses = []
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        results = accumulate(step)
        losses.append(torch.stack([torch.stack([r[key] for key in ("loss", "loss_supervised", "loss_pseudo",
                                                                    "loss_synthetic")]) for r in results]).mean(0))
        for each, optimizer in zip(networks, optimizers, strict=True):
            nn.utils.clip_grad_norm_(each.parameters(), 1)          # so low that it clips
            optimizer.step()
    return {"weights": [p.detach() for each in networks for p in each.parameters()], "losses": torch.stack(losses)}


def on_one_rank(rank: int, folder: str) -> None:
    """Body of each process: every scenario, one after another; results go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS,
                            timeout=timedelta(seconds=60))
    results = {}
    for method, scenario in CASES:
        usable = SCENARIOS[scenario]
        networks = [DistributedDataParallel(each) for each in networks_of(method)]
        reductions = [count_reductions(each) for each in networks]
        batch_sizes: list[int] = []
        for each in networks:
            each.register_forward_pre_hook(lambda _, inputs, sizes=batch_sizes: sizes.append(len(inputs[0])))
        mine = None if usable is None else usable[rank]
        found = train(networks, lambda step, networks=networks, mine=mine:
                      [backward_of(networks, step, slice(rank, rank + 1), mine)])
        results[method, scenario] = found | {"reductions": [len(each) for each in reductions],
                                             "batch_sizes": batch_sizes}
    torch.save(results, Path(folder) / f"rank_{rank}.pt")
    dist.destroy_process_group()


def count_reductions(network: DistributedDataParallel) -> list[int]:
    """Grows by one whenever gradients go over the wire."""
    reductions: list[int] = []

    def hook(state, bucket):        # DDP compares annotations with types, and ours are strings
        reductions.append(bucket.index())
        return allreduce_hook(None, bucket)

    network.register_comm_hook(None, hook)
    return reductions


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What each of the two processes ended with."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(on_one_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(RANKS)]


def rank_by_rank(networks: list[nn.Module], usable: list[list[bool]] | None) -> Callable[[int], list[dict[str, Any]]]:
    """In one process: the mean over the ranks of the gradient that each has of its own samples."""
    def accumulate(step: int) -> list[dict[str, Any]]:
        results = [backward_of(networks, step, slice(rank, rank + 1), None if usable is None else usable[rank])
                   for rank in range(RANKS)]
        for each in networks:
            for parameter in each.parameters():
                parameter.grad /= RANKS
        return results
    return accumulate


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_ranks_stay_equal(ranks: list[dict], case: tuple[str, str]) -> None:
    first, second = (rank[case]["weights"] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_two_ranks_equal_one_process(ranks: list[dict], case: tuple[str, str]) -> None:
    method, scenario = case
    networks = networks_of(method)
    initial = [p.detach().clone() for each in networks for p in each.parameters()]
    expected = train(networks, rank_by_rank(networks, SCENARIOS[scenario]))
    torch.testing.assert_close(ranks[0][case]["weights"], expected["weights"], rtol=1e-9, atol=1e-12)
    losses = (ranks[0][case]["losses"] + ranks[1][case]["losses"]) / 2
    torch.testing.assert_close(losses, expected["losses"], rtol=1e-9, atol=1e-12)
    # A convolution's bias before instance norm has no gradient; all else has moved.
    moved = [not torch.allclose(a, b, atol=1e-6) for a, b in zip(initial, expected["weights"], strict=True)]
    assert sum(moved) == len(moved) - len(networks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scenario", ["without_synthesis", "all_usable"])
def test_two_ranks_equal_one_process_with_the_whole_batch(ranks: list[dict], method: str, scenario: str) -> None:
    networks = networks_of(method)
    usable = None if SCENARIOS[scenario] is None else [True] * 2 * RANKS * SAMPLES_PER_RANK
    expected = train(networks, lambda step: [backward_of(networks, step, slice(0, RANKS), usable)])
    torch.testing.assert_close(ranks[0][method, scenario]["weights"], expected["weights"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_synthetic_term_counts(ranks: list[dict], method: str) -> None:
    """Otherwise the scenarios above would all be one."""
    weights = [torch.cat([p.flatten() for p in ranks[0][method, scenario]["weights"]]) for scenario in SCENARIOS]
    for i, one in enumerate(weights):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in weights[i + 1:])


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_gradients_are_reduced_once_a_step(ranks: list[dict], case: tuple[str, str]) -> None:
    """`no_sync` before the last backward: one reduction a network and step, each in a single bucket."""
    assert [rank[case]["reductions"] for rank in ranks] == [[STEPS] * METHODS[case[0]]] * RANKS


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_batches_are_equal_on_all_ranks(ranks: list[dict], case: tuple[str, str]) -> None:
    """nnU-Net's batch Dice gathers over the ranks and hangs when one has fewer samples, usable or not."""
    method, scenario = case
    forwards = [2 * SAMPLES_PER_RANK] * METHODS[method]
    if SCENARIOS[scenario] is not None:
        forwards += [SAMPLES_PER_RANK] * METHODS[method]
    assert [rank[case]["batch_sizes"] for rank in ranks] == [forwards * STEPS] * RANKS
