"""What a training step on the CPU costs under settings of the machine: bfloat16, memory that is kept, threads.

    python -m benchmarks.cpu_settings [--size 128] [--batch 8] [--features 16 32 64 128 256] [--rounds 5]

One U-Net of nnU-Net, forward and backward, each setting in a process of its own, in turns; medians are compared. The
processor time, which other load hardly touches, stands beside the wall time. Writes
benchmarks/results/cpu_settings_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.record import write_result
from nnunet_synth.mixed_precision import VARIABLE, autocast

# glibc gives large blocks back at once, and every new one costs a page fault for each 4 KiB.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "2147483648", "MALLOC_TRIM_THRESHOLD_": "8589934592",
               "MALLOC_TOP_PAD_": "67108864", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SETTINGS = {
    "float32": {},
    "float32, memory kept": KEEP_MEMORY,
    "bfloat16": {VARIABLE: "1"},
    "bfloat16, memory kept": {VARIABLE: "1", **KEEP_MEMORY},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--rounds", type=int, default=5, help="in which all settings take turns")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)       # in the process of one setting
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(time_steps(args)))
        return

    measured = {(name, threads): [] for threads in args.threads for name in SETTINGS}
    for _ in range(args.rounds):
        for (name, threads), steps in measured.items():
            steps.append(run_one(args, SETTINGS[name], threads))
    results = [{"setting": name, "threads": threads,
                **{key: round(statistics.median(step[key] for step in steps), 4) for key in steps[0]}}
               for (name, threads), steps in measured.items()]
    for row in results:
        print("{setting:22s} {threads} thread(s): {wall:.3f} s, processor {processor:.3f} s, {faults:,.0f} page faults"
              .format(**row))
    write_result({"size": args.size, "batch": args.batch, "features": args.features, "rounds": args.rounds,
                  "results": results}, "cpu_settings", torch.device("cpu"), args.output)


def run_one(args: argparse.Namespace, environment: dict[str, str], threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.cpu_settings", "--one", "--size", str(args.size), "--batch",
               str(args.batch), "--threads", str(threads), "--features", *map(str, args.features)]
    plain = {name: value for name, value in os.environ.items() if name not in (*KEEP_MEMORY, VARIABLE)}
    done = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def time_steps(args: argparse.Namespace, warm_up: int = 2, number: int = 5) -> dict[str, float]:
    """Of one step in this process: seconds of wall clock and processor, page faults."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    torch.set_num_threads(args.threads[0])
    stages = len(args.features)
    network = PlainConvUNet(1, stages, args.features, nn.Conv2d, 3, [1, *[2] * (stages - 1)], 2, 2, 2, conv_bias=True,
                            norm_op=nn.InstanceNorm2d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
                            nonlin_kwargs={"inplace": True}, deep_supervision=True)
    image = torch.randn(args.batch, 1, args.size, args.size)

    def step() -> None:
        with autocast("cpu"):
            outputs = network(image)
        sum(output.float().square().mean() for output in outputs).backward()

    for _ in range(warm_up):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(number):
        step()
    return {"wall": (time.perf_counter() - wall) / number, "processor": (time.process_time() - processor) / number,
            "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / number}


if __name__ == "__main__":
    main()
