"""What a training step costs: supervised, CPS and SA-CPS on the same networks and the same batch.

    python -m benchmarks.train_step [--device cpu|cuda] [--size 128] [--batch 8] [--features 16 32 64 128 256]
                                    [--synthesizers sean um2i cs2] [--preset tiny|default|paper] [--rounds 10]

The methods take turns within one run, because these machines are noisy; medians are compared. Peak memory is that of
the allocator on CUDA, and that of a process of its own for each method on the CPU. The batch is phantom chest CT, and
the networks are first trained for a few supervised steps, so that their pseudo-labels look like labels and not like
noise (the synthesizer's cost depends on the label map). CS2 draws from superpixels here, since
its clusters are found offline.
Writes `benchmarks/results/train_step_<device>.json`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from benchmarks import process_memory
from benchmarks.record import synchronise, write_result
from nnunet_synth.config import TrainerConfig
from nnunet_synth.data.phantom import PhantomSettings, draw_case
from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.base import Slices, SynthMeta
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.semantic import SemanticClasses
from nnunet_synth.trainers.cross_pseudo import cross_pseudo_step
from nnunet_synth.trainers.synthesis import Synthesis, UnlabelledBatch

WITHOUT_SYNTHESIS = ("supervised", "CPS")
SEMANTIC = SemanticClasses.from_labels({"infection": 1}, {"left_lung": 1, "right_lung": 2})


class OneBatch:
    """A labelled and an unlabelled batch of phantom slices; also the slices that the style pool is made from."""

    def __init__(self, batch_size: int, size: int, device: torch.device) -> None:
        cases = [draw_case(np.random.SeedSequence([7, number]), PhantomSettings(size, 4))
                 for number in range(batch_size)]
        worst = [case.label.sum((1, 2)).argmax() for case in cases]     # the slice with the largest lesions

        def chosen(part: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(case, part)[index].astype(np.int64)
                                              for case, index in zip(cases, worst, strict=True)]))

        self.slices = Slices(
            image=((chosen("image") + 540) / 270).float()[:, None], label=chosen("label"), layout=chosen("layout"),
            valid=torch.ones(batch_size, size, size, dtype=torch.bool),
            origin=[(f"case{number}", 0) for number in range(batch_size)])
        here = self.slices.to(device)
        self.x_l, self.y_l = here.image, here.label[:, None]
        self.unlabelled = UnlabelledBatch(here.image.flip(0).contiguous(), here.layout.flip(0),
                                          torch.zeros_like(here.label), here.valid)

    def iterate(self, only_targets: bool, max_slices: int | None = None):
        for number in range(len(self.slices.image))[:max_slices]:
            part = slice(number, number + 1)
            yield Slices(self.slices.image[part], self.slices.label[part], self.slices.layout[part],
                         self.slices.valid[part], self.slices.origin[part])


class Bench:
    """Two networks, their optimizers, a batch and a synthesizer; one step of each method."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        torch.manual_seed(0)
        stages = len(args.features)
        self.networks = [PlainConvUNet(
            1, stages, args.features, nn.Conv2d, 3, [1] + [2] * (stages - 1), 2, 2, 2, conv_bias=True,
            norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True}, deep_supervision=True).to(self.device) for _ in range(2)]
        self.optimizers = [torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
                           for network in self.networks]
        self.scaler = torch.amp.GradScaler("cuda") if self.device.type == "cuda" else None
        weights = np.array([1 / 2 ** level for level in range(stages - 1)])
        weights[-1] = 0
        self.loss = DeepSupervisionWrapper(
            DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
                           dice_class=MemoryEfficientSoftDiceLoss), weights / weights.sum())
        self.labels = PseudoLabels()
        self.batch = OneBatch(args.batch, args.size, self.device)
        self.synthesis = {sacps(name): self._synthesis(name, args.preset) for name in args.synthesizers}
        for _ in range(args.warm_up):
            self.supervised()
            self._train(self.networks[1], self.optimizers[1])

    def _synthesis(self, name: str, preset: str) -> Synthesis:
        synthesizer_class = find_synthesizer(name)
        config = make_config(synthesizer_class, preset, {"mask": "slic"} if name == "cs2" else None)
        meta = SynthMeta(synthesizer=name, config=asdict(config), dataset="phantom", channel_names=["CT"],
                         semantic=SEMANTIC, target_labels=[1], intensity_range=[[-1.5, 2.5]], patch_size=[256, 256],
                         divisor=1, fold=0, train_case_ids=[])
        source = synthesizer_class.build(meta, config)
        synthesizer = synthesizer_class.build(meta, config)
        synthesizer.load_exported(source.export_state())
        synthesizer.to(self.device).eval().requires_grad_(False)
        synthesizer.fit_pool(self.batch)
        return Synthesis(synthesizer, TrainerConfig(), self.device, seed=0)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _update(self, pairs: list[tuple[nn.Module, torch.optim.Optimizer]]) -> None:
        for network, optimizer in pairs:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update()

    def _train(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with self.autocast():
            outputs = network(self.batch.x_l)
            loss = self.loss(outputs, self.labels.for_outputs(self.batch.y_l, outputs))
        self.backward(loss)
        self._update([(network, optimizer)])

    def supervised(self) -> None:
        self._train(self.networks[0], self.optimizers[0])

    def cross_pseudo(self, synthesize: Callable | None = None) -> None:
        network, peer = self.networks
        # The targets of the labelled stream come from the loader: made here once, they cost nothing in the step.
        if not hasattr(self, "y_l_levels"):
            with torch.no_grad(), self.autocast():
                self.y_l_levels = self.labels.for_outputs(self.batch.y_l, network(self.batch.x_l))
        cross_pseudo_step(network, peer, self.batch.x_l, self.y_l_levels, self.batch.unlabelled.image, loss=self.loss,
                          pseudo_labels=self.labels, backward=self.backward, pseudo_weight=0.5, synthetic_weight=0.5,
                          synthesize=synthesize, autocast=self.autocast)
        self._update(list(zip(self.networks, self.optimizers, strict=True)))

    def step(self, method: str) -> float:
        """Seconds of one step."""
        synchronise(self.device)
        start = time.perf_counter()
        if method == "supervised":
            self.supervised()
        else:
            synthesis = self.synthesis.get(method)
            self.cross_pseudo(synthesis and partial(synthesis.draw, batch=self.batch.unlabelled))
        synchronise(self.device)
        return time.perf_counter() - start


def sacps(synthesizer: str) -> str:
    return f"SA-CPS ({synthesizer})"


def peak_memory(args: argparse.Namespace, method: str) -> float:
    """MiB that networks, optimizers, synthesizer, batch and three steps of a method need at their peak."""
    if args.device != "cpu":
        bench = Bench(args)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            bench.step(method)
        return torch.cuda.max_memory_allocated() / 2 ** 20
    with multiprocessing.get_context("spawn").Pool(1) as pool:      # a fresh process: its high-water mark is its own
        return pool.apply(_peak_memory_of_process, (args, method))


def _peak_memory_of_process(args: argparse.Namespace, method: str) -> float:
    torch.set_num_threads(args.threads)
    libraries = process_memory.resident()
    bench = Bench(argparse.Namespace(**{**vars(args), "warm_up": 0}))
    process_memory.forget_peak()        # that of building
    for _ in range(3):
        bench.step(method)
    return (process_memory.peak() - libraries) / 2 ** 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--synthesizers", nargs="+", default=["sean", "um2i", "cs2"])
    parser.add_argument("--preset", default="tiny", choices=("tiny", "default", "paper"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=40, help="supervised steps before anything is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    methods = [*WITHOUT_SYNTHESIS, *map(sacps, args.synthesizers)]
    bench = Bench(args)
    for method in methods:
        bench.step(method)
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    synthesis: dict[str, list[float]] = {method: [] for method in bench.synthesis}
    for _ in range(args.rounds):
        for method in methods:
            seconds[method].append(bench.step(method))
        for method, one in bench.synthesis.items():
            synthesis[method].append(one.seconds)
    del bench
    memory = {method: peak_memory(args, method) for method in methods}
    result = summarise(args, seconds, synthesis, memory)
    for method in methods:
        print(f"{method:14}  {np.median(seconds[method]):7.3f} s  {result['in_supervised_steps'][method]:5.2f} × "
              f"supervised  peak {memory[method]:7.0f} MiB")
    for method in synthesis:
        print(f"{method} : CPS = {result['over_cps'][method]:.2f} in time, {result['over_cps_memory'][method]:.2f} in "
              f"peak memory; synthesis is {result['share_of_synthesis'][method]:.0%} of its step")
    write_result(result, "train_step", torch.device(args.device), args.output)


def summarise(args: argparse.Namespace, seconds: dict[str, list[float]], synthesis: dict[str, list[float]],
              memory: dict[str, float]) -> dict[str, Any]:
    median = {method: float(np.median(times)) for method, times in seconds.items()}
    return {
        "size": args.size, "batch": args.batch, "features": args.features, "preset": args.preset,
        "rounds": args.rounds, "seconds": seconds, "seconds_synthesis": synthesis, "median_seconds": median,
        "in_supervised_steps": {method: value / median["supervised"] for method, value in median.items()},
        "over_cps": {method: median[method] / median["CPS"] for method in synthesis},
        "share_of_synthesis": {method: float(np.median(times)) / median[method] for method, times in synthesis.items()},
        "peak_memory_mib": memory,
        "over_cps_memory": {method: memory[method] / memory["CPS"] for method in synthesis},
        "peak_memory_is": "of the allocator" if args.device != "cpu" else
                          "resident size of a process of its own, without the libraries",
    }


if __name__ == "__main__":
    main()
