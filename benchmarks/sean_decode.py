"""How fast SEAN draws, compared with its published form: the same weights, the same labels, the same style code.

    python -m benchmarks.sean_decode [--device cpu|cuda] [--sizes 256 512] [--presets default paper] [--batch 1]

The published form (`tests/reference/sean.py`) paints the styles onto the label map and convolves them; it is batched,
without the loops over images and classes that the original code has, and its spectral norms are folded too. Prints a
table and writes `benchmarks/results/sean_decode_<device>.json`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import synchronise, write_result
from nnunet_synth.synthesizers.ace import FoldedLabels, PatternLabels
from nnunet_synth.synthesizers.label_patterns import find_label_patterns
from nnunet_synth.synthesizers.sean import SEAN, Generator, SEANConfig
from tests.reference import sean as published

NUM_CLASSES = 4     # background, two lungs, infection


def lung_labels(number: int, size: int, seed: int = 0) -> Tensor:
    """[N, size, size]: two elliptic lungs with irregular lesions (thresholded smooth noise), most of them low."""
    from scipy.ndimage import gaussian_filter
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    maps = np.zeros((number, size, size), np.int64)
    for one in maps:
        tilt, height, width = rng.uniform(-0.2, 0.2), rng.uniform(0.3, 0.38), rng.uniform(0.13, 0.17)
        for index, side in ((1, -1), (2, 1)):
            across, along = x - side * 0.2 + side * tilt * y, y + rng.uniform(-0.03, 0.03)
            one[(across / width) ** 2 + (along / height) ** 2 < 1] = index
        noise = gaussian_filter(rng.standard_normal((size, size)), size / 40)
        noise = noise / noise.std() + 3 * y + 0.15 * gaussian_filter(rng.standard_normal((size, size)), 1.5)
        inside = one > 0
        one[inside & (noise > np.quantile(noise[inside], 0.88))] = 3
    return torch.from_numpy(maps)


def measure(forms: dict[str, Callable[[], Tensor]], device: torch.device, budget: float) -> dict[str, list[dict]]:
    """Wall and processor seconds of repeated calls, all forms in turn, so that other load on the machine meets all
    alike: at least two rounds, at most fifteen, while the budget lasts."""
    times = {name: [] for name in forms}
    begin = time.perf_counter()
    while len(times["published"]) < 2 or (len(times["published"]) < 15 and time.perf_counter() - begin < budget):
        for name, draw in forms.items():
            synchronise(device)
            start, start_cpu = time.perf_counter(), time.process_time()
            draw()
            synchronise(device)
            times[name].append({"wall": time.perf_counter() - start, "cpu": time.process_time() - start_cpu})
    return times


def median(times: list[dict], clock: str) -> float:
    return float(np.median([one[clock] for one in times]))


def random_generator(config: SEANConfig, device: torch.device) -> Generator:
    """With random weights, of which none is zero or symmetric, and random batch statistics."""
    torch.manual_seed(0)
    generator = Generator(config, NUM_CLASSES, 1).eval()
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.7 * (tensor[0].numel() if tensor.ndim > 1 else 16) ** -0.5)
    return generator.to(device)


@torch.no_grad()
def compare(preset: str, size: int, batch: int, device: torch.device, budget: float) -> dict:
    generator = random_generator(SEAN.PRESETS[preset], device)
    weights = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    semantic = lung_labels(batch, size).to(device)
    codes = torch.randn(1, NUM_CLASSES, SEAN.PRESETS[preset].style_dim, device=device)
    decoder = generator.decoder
    forms = {
        "published": lambda: published.draw(weights, decoder.num_upsamplings, semantic, codes.expand(batch, -1, -1)),
        "folded": lambda: decoder.decode(semantic, codes, None, FoldedLabels.of),
        "patterns": lambda: decoder.decode(semantic, codes, None, PatternLabels.of),
    }
    drawn = {name: draw() for name, draw in forms.items()}      # the first call also warms up
    expected = drawn["published"]
    times = measure(forms, device, budget)
    row = {"preset": preset, "size": size, "batch": batch, "output_std": expected.std().item(),
           "distinct_neighbourhoods": [len(find_label_patterns(level, NUM_CLASSES).wide)
                                       for level in decoder.levels_of(semantic)]}
    for name in forms:
        row[name] = {"seconds_per_image": median(times[name], "wall") / batch,
                     "processor_seconds_per_image": median(times[name], "cpu") / batch,
                     "speedup": median(times["published"], "wall") / median(times[name], "wall"),
                     "processor_speedup": median(times["published"], "cpu") / median(times[name], "cpu"),
                     "max_difference": (drawn[name] - expected).abs().max().item(), "rounds": times[name]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--presets", nargs="+", choices=list(SEAN.PRESETS), default=["default", "paper"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; more than one need an idle machine")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds for each preset and size")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    rows = []
    print(f"{'preset':8} {'size':>4} {'form':10} {'s/image':>8} {'speed-up':>9} {'CPU s':>8} {'speed-up':>9}"
          "   max difference")
    for preset in args.presets:
        for size in args.sizes:
            row = compare(preset, size, args.batch, device, args.budget)
            rows.append(row)
            for form in ("published", "folded", "patterns"):
                result = row[form]
                print(f"{preset:8} {size:4d} {form:10} {result['seconds_per_image']:8.3f} {result['speedup']:8.1f}× "
                      f"{result['processor_seconds_per_image']:8.3f} {result['processor_speedup']:8.1f}×   "
                      f"{result['max_difference']:.1e}", flush=True)

    write_result({"dtype": "float32", "rows": rows}, "sean_decode", device, args.output)


if __name__ == "__main__":
    main()
