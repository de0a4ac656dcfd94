"""How long does the intensity augmentation of one batch take: batched on the device, or batchgeneratorsv2's?

    python -m benchmarks.intensity_augmentation [--device cuda]

Both augment the same batches, turn by turn, with nnU-Net's parameters. batchgeneratorsv2 goes through the batch sample
by sample on the CPU, as it would inside a training step; on CUDA the way to the CPU and back is part of its time.
On the CPU one thread works and its processor time is taken, which other load on the machine hardly touches.
Prints a table and writes benchmarks/results/intensity_augmentation_<device>.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from benchmarks.record import device_name, synchronise, write_result
from nnunet_synth.data.intensity_augmentation import augment_intensity

SHAPES = {"2D": (24, 1, 256, 256), "3D": (4, 1, 64, 128, 128)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batches", type=int, default=60, help="timed batches of each (default: 60)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)

    rows = [measure(name, shape, device, args.batches) for name, shape in SHAPES.items()]
    print(f"ms a batch ({clock(device).__name__}), {device_name(device)}")
    print(f"{'batch':28} {'who':22} {'mean':>8} {'median':>8} {'max':>8}")
    for row in rows:
        for who, times in row["milliseconds"].items():
            print(f"{row['name'] + ' ' + str(row['shape']):28} {who:22} "
                  f"{times['mean']:8.1f} {times['median']:8.1f} {times['max']:8.1f}")
    write_result({"clock": clock(device).__name__, "batches": args.batches, "results": rows,
                  "libraries": {name: version(name) for name in ("nnunetv2", "batchgeneratorsv2")}},
                 "intensity_augmentation", device)


def measure(name: str, shape: tuple[int, ...], device: torch.device, num_batches: int) -> dict:
    """Milliseconds a batch of each, taking turns, so that other load on the machine meets both alike."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    contenders = {"batched": batched(device), "batchgeneratorsv2": sample_by_sample(len(shape) - 2)}
    if device.type != "cpu":
        contenders["batched, CPU generator"] = batched(torch.device("cpu"))
    times = {who: [] for who in contenders}
    for turn in range(-5, num_batches):                 # the first turns are warm-up
        for who, augment in contenders.items():
            elapsed = milliseconds(augment, images)
            if turn >= 0:
                times[who].append(elapsed)
    return {"name": name, "shape": list(shape), "milliseconds": {
        who: {"mean": round(statistics.mean(values), 2), "median": round(statistics.median(values), 2),
              "max": round(max(values), 2)} for who, values in times.items()}}


def batched(generator_device: torch.device) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator(generator_device).manual_seed(0)
    return lambda images: augment_intensity(images, generator)


def sample_by_sample(num_axes: int) -> Callable[[Tensor], Tensor]:
    composed = nnUNetTrainer.get_training_transforms((32,) * num_axes, (0, 0), None, (), False)
    transforms = [transform for transform in composed.transforms if isinstance(transform, RandomTransform)]

    def augment_sample(image: Tensor) -> Tensor:
        sample = {"image": image.clone()}
        for transform in transforms:
            sample = transform(**sample)
        return sample["image"]

    return lambda images: torch.stack([augment_sample(image) for image in images.cpu()]).to(images.device)


def milliseconds(augment: Callable[[Tensor], Tensor], images: Tensor) -> float:
    now = clock(images.device)
    synchronise(images.device)
    start = now()
    augment(images)
    synchronise(images.device)
    return 1000 * (now() - start)


def clock(device: torch.device) -> Callable[[], float]:
    return time.process_time if device.type == "cpu" else time.perf_counter


if __name__ == "__main__":
    main()
