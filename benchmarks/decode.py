"""What one synthetic image costs: every synthesizer at its default size, with random weights, in one run.

    python -m benchmarks.decode [--device cpu|cuda] [--sizes 256 512] [--batch 4] [--synthesizers sean um2i cs2 …]

A call is `begin_step` and `synthesize`, as a training step makes them: range map, padding, superpixels where masks are
drawn from, and the network. Each synthesizer has a process of its own, so that peak memory is its own: on CUDA what was
allocated at most, on the CPU how much the process grew beyond its weights, style pool and one warm-up call of 32 × 32.
Processor seconds stand beside the wall clock, as other work on the machine does not count there. What SEAN's closed
form saves against the published one is in `sean_decode.py`. Writes `benchmarks/results/decode_<device>.json`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import process_memory
from benchmarks.phantom_training import HU_WINDOW, SEMANTIC, PhantomSlices
from benchmarks.record import synchronise, write_result
from benchmarks.sean_decode import lung_labels
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.base import Synthesizer, SynthMeta, SynthRequest
from nnunet_synth.synthesizers.options import make_config

SYNTHESIZERS = ("sean", "um2i", "cs2", "cosingan", "lcgan")
LESION = 3              # in the maps of `lung_labels`; 1 and 2 are the lungs
POOL_SIZE = 128         # pixels of the slices that style is taken from
ROUNDS = 2, 15          # at least, at most


def build(name: str, preset: str, size: int, device: torch.device) -> Synthesizer:
    """Random weights; style and lesion intensities of a few phantom slices. CS2 draws from superpixels here, as its
    clusters are found offline."""
    synthesizer_class = find_synthesizer(name)
    config = make_config(synthesizer_class, preset, {"mask": "slic"} if name == "cs2" else None)
    meta = SynthMeta(synthesizer=name, config=asdict(config), dataset="phantom", channel_names=["CT"],
                     semantic=SEMANTIC, target_labels=[1], intensity_range=[[bound / 1000 for bound in HU_WINDOW]],
                     patch_size=[size, size], divisor=1, fold=0, train_case_ids=[])
    torch.manual_seed(0)
    synthesizer = synthesizer_class.build(meta, config).to(device).eval().requires_grad_(False)
    if device.type == "cuda":
        synthesizer.to(memory_format=torch.channels_last)
    synthesizer.fit_pool(PhantomSlices.of_patients(range(2), POOL_SIZE, 4))
    return synthesizer


def make_request(number: int, size: int, device: torch.device) -> SynthRequest:
    """Lungs with lesions, and a noisy image that shows them."""
    semantic = lung_labels(number, size)
    label = (semantic == LESION).long()
    layout = torch.where(semantic == LESION, 1, semantic)
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.1, -0.85, -0.85, -0.4])[semantic]
    image = (values + 0.05 * torch.randn(values.shape, generator=generator)).clamp(-1, 0.2)[:, None]
    request = SynthRequest(label=label, image=image, layout=layout, valid=torch.ones_like(label, dtype=torch.bool))
    return replace(request, **{part: getattr(request, part).to(device) for part in ("label", "image", "layout",
                                                                                    "valid")},
                   generator=torch.Generator(device).manual_seed(0))


def measure(name: str, preset: str, size: int, batch: int, device_name: str, threads: int,
            budget: float) -> dict[str, Any]:
    """Of repeated calls for `batch` images of size × size."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    synthesizer = build(name, preset, size, device)
    request = make_request(batch, size, device)

    def draw(request: SynthRequest) -> None:
        synthesizer.begin_step(request.generator)
        synthesizer.synthesize(request)
        synchronise(device)

    draw(make_request(1, 32, device))
    memory = PeakMemory(device)
    draw(request)
    peak, times = memory.grown(), []
    begin = time.perf_counter()
    while len(times) < ROUNDS[0] or (len(times) < ROUNDS[1] and time.perf_counter() - begin < budget):
        start, start_cpu = time.perf_counter(), time.process_time()
        draw(request)
        times.append((time.perf_counter() - start, time.process_time() - start_cpu))
    wall, processor = np.median(times, axis=0) / batch
    return {"synthesizer": name, "preset": preset, "size": size, "batch": batch,
            "ms_per_image": 1000 * float(wall), "processor_ms_per_image": 1000 * float(processor),
            "rounds": times, "parameters": sum(one.numel() for one in synthesizer.parameters()),
            "networks": len(synthesizer.variants), "peak_bytes": peak, "config": asdict(synthesizer.config)}


class PeakMemory:
    """How much more was in use at most than when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)                    # glibc keeps what the style pool's making has freed
            process_memory.forget_peak()
            self.before = process_memory.resident()

    def grown(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return process_memory.peak() - self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--synthesizers", nargs="+", default=SYNTHESIZERS)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; more than one need an idle machine")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds for each synthesizer and size")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    rows = []
    print(f"{'synthesizer':16} {'size':>4} {'ms/image':>9} {'CPU ms':>9} {'parameters':>11} {'peak memory':>12}")
    spawn = multiprocessing.get_context("spawn")
    for name in args.synthesizers:
        for size in args.sizes:
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                row = process.submit(measure, name, args.preset, size, args.batch, args.device, args.threads,
                                     args.budget).result()
            rows.append(row)
            print(f"{name:16} {size:4d} {row['ms_per_image']:9.1f} {row['processor_ms_per_image']:9.1f} "
                  f"{row['parameters'] / 1e6:9.1f} M {row['peak_bytes'] / 2 ** 20:8.0f} MiB", flush=True)

    torch.set_num_threads(args.threads)
    write_result({"dtype": "float32" if torch.device(args.device).type == "cpu" else "bfloat16", "rows": rows},
                 "decode", torch.device(args.device), args.output)


if __name__ == "__main__":
    main()
