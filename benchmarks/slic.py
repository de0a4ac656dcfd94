"""How fast is SLIC in torch, and how good, compared with scikit-image's on the same images in the same run?

    python -m benchmarks.slic [--device cpu|cuda] [--sizes 256 512 1024] [--batches 1 16] [--compile]

Gray images, compactness 0.1, 10 iterations, 512 superpixels in 512 × 512 pixels and as large ones at other sizes.
scikit-image works image by image on one core of the CPU, with its default (connectivity enforced) and without, as ours.
On the CPU ours has one thread, too, and processor time is taken, which other load on the machine touches less; on CUDA
wall time. All take turns.

Quality on real slices (../shared/data, or NNUNET_SYNTH_TEST_DATA): standard deviation of what the superpixels' means
leave of the image, and under-segmentation error of lungs and tumour (CT) and of infection (COVID-SemiSeg). Without the
real ones, timing is on the phantom and there is no quality. Prints tables and writes
benchmarks/results/slic_<device>.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import device_name, synchronise, write_result
from nnunet_synth.superpixels import (
    paint,
    scaled_num_segments,
    segment_means,
    slic,
    under_segmentation_error,
)

SHARED_DATA = Path(os.environ.get("NNUNET_SYNTH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
COMPACTNESS, ITERATIONS = 0.1, 10
SCIKIT, SCIKIT_FREE = "scikit-image", "scikit-image, not connected"

Slice = tuple[str, np.ndarray, np.ndarray]      # name, gray [H, W] in [0, 1], regions [H, W]


# ----------------------------------------------------------------------------------------------------------------------
# Images


def real_slices(folder: Path) -> Iterator[Slice]:
    """Every third slice of a real CT (lungs, tumour), and every fifth labelled slice of COVID-SemiSeg (infection)."""
    import SimpleITK
    from skimage import io

    from nnunet_synth.data.lung_threshold import find_lungs
    volume = SimpleITK.ReadImage(str(folder / "lung_ct_volume" / "lung1_image.nrrd"))
    hu = SimpleITK.GetArrayFromImage(volume).astype(np.float32)
    tumour = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "lung_ct_volume" / "lung1_label.nrrd")))
    regions = np.where(tumour > 0, 3, find_lungs(hu, volume.GetSpacing()[::-1], "SPL", True))
    for z in range(0, len(hu), 3):
        yield f"lung_ct_volume/{z}", np.clip((hu[z] + 1500) / 1600, 0, 1), regions[z]
    labelled = folder / "covid_semiseg" / "Dataset" / "TrainingSet" / "LungInfection-Train" / "Doctor-label"
    for file in sorted((labelled / "Imgs").glob("*.jpg"))[::5]:
        gray = io.imread(file, as_gray=True).astype(np.float32)
        infection = io.imread(labelled / "GT" / f"{file.stem}.png")
        infection = infection if infection.ndim == 2 else infection[..., 0]
        yield f"covid_semiseg/{file.stem}", gray / (255 if gray.max() > 1 else 1), infection > 127


def phantom_slices(number: int) -> list[np.ndarray]:
    from numpy.random import SeedSequence

    from nnunet_synth.data.phantom import PhantomSettings, draw_case
    case = draw_case(SeedSequence([0, 0, 0]), PhantomSettings(256, number))
    return list(np.clip((case.image.astype(np.float32) + 1500) / 1600, 0, 1))


def batch_of(slices: list[np.ndarray], number: int, size: int) -> Tensor:
    """[number, 1, size, size], different slices as long as there are."""
    images = [torch.from_numpy(slices[index % len(slices)])[None, None] for index in range(number)]
    return torch.cat([F.interpolate(image, (size, size), mode="bilinear") for image in images]).contiguous()


# ----------------------------------------------------------------------------------------------------------------------
# Time


def measure(size: int, batch: int, slices: list[np.ndarray], device: torch.device, args: argparse.Namespace) -> dict:
    """Milliseconds an image; scikit-image gets one image a turn."""
    images, num_segments = batch_of(slices, batch, size), scaled_num_segments(size, size)
    on_device = images.to(device)
    forms = {"torch": lambda turn: slic(on_device, num_segments, COMPACTNESS, ITERATIONS)}
    if args.compile:
        compiled = torch.compile(slic, fullgraph=True, dynamic=False)
        forms["torch, compiled"] = lambda turn: compiled(on_device, num_segments, COMPACTNESS, ITERATIONS)
    for name, connected in ((SCIKIT, True), (SCIKIT_FREE, False)):
        forms[name] = lambda turn, connected=connected: scikit_slic(images[turn % batch, 0].numpy(), connected)

    times = {name: [] for name in forms}
    begin = time.perf_counter()
    while len(times["torch"]) < 4 or (len(times["torch"]) < 30 and time.perf_counter() - begin < args.budget):
        for name, call in forms.items():
            number = 1 if name.startswith("scikit") else batch
            times[name].append(milliseconds(call, len(times[name]), device) / number)
    rows = {name: {"median": statistics.median(values[1:]), "min": min(values[1:]), "turns": len(values) - 1}
            for name, values in times.items()}          # the first turn is warm-up
    for row in rows.values():
        row["speedup"] = rows[SCIKIT]["median"] / row["median"]
        row["speedup_of_min"] = rows[SCIKIT]["min"] / row["min"]
    return {"size": size, "batch": batch, "num_segments": num_segments, "milliseconds_per_image": rows}


def milliseconds(call: Callable[[int], object], turn: int, device: torch.device) -> float:
    now = clock(device)
    synchronise(device)
    start = now()
    call(turn)
    synchronise(device)
    return 1000 * (now() - start)


def clock(device: torch.device) -> Callable[[], float]:
    return time.process_time if device.type == "cpu" else time.perf_counter


def scikit_slic(gray: np.ndarray, connected: bool = True) -> np.ndarray:
    from skimage import segmentation
    return segmentation.slic(gray, scaled_num_segments(*gray.shape), COMPACTNESS, ITERATIONS, channel_axis=None,
                             start_label=0, enforce_connectivity=connected)


# ----------------------------------------------------------------------------------------------------------------------
# Quality


def judge(gray: np.ndarray, regions: np.ndarray, device: torch.device) -> dict[str, dict[str, float]]:
    image, regions = torch.from_numpy(gray)[None, None], torch.from_numpy(regions.astype(np.int64))[None]
    ours = slic(image.to(device), scaled_num_segments(*gray.shape), COMPACTNESS, ITERATIONS).cpu()
    found = {"torch": ours, **{name: torch.from_numpy(scikit_slic(gray, connected).astype(np.int64))[None]
                               for name, connected in ((SCIKIT, True), (SCIKIT_FREE, False))}}
    return {name: {"residual_std": residual_std(image, segments),
                   "under_segmentation_error": under_segmentation_error(segments, regions).item(),
                   "superpixels": len(segments.unique())} for name, segments in found.items()}


def residual_std(image: Tensor, segments: Tensor) -> float:
    return float((image - paint(segment_means(image, segments, int(segments.max()) + 1), segments)).std())


def summarise(rows: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Dataset → method → means over its slices, and the largest ratio to scikit-image's of a slice."""
    summary = {}
    for dataset in sorted({row["slice"].split("/")[0] for row in rows}):
        own = [row["quality"] for row in rows if row["slice"].startswith(dataset)]
        summary[dataset] = {"slices": len(own)}
        for name in own[0]:
            means = {key: statistics.mean(row[name][key] for row in own) for key in own[0][name]}
            worst = max(row[name]["residual_std"] / row[SCIKIT]["residual_std"] for row in own)
            summary[dataset][name] = {**means, "largest_residual_ratio": worst}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--compile", action="store_true", help="time torch.compile's, too (a minute or more each)")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each size and batch (default: 20)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)

    real = list(real_slices(SHARED_DATA)) if SHARED_DATA.is_dir() else []
    slices = [gray for name, gray, _ in real if name.startswith("lung_ct_volume")] or phantom_slices(16)

    rows = []
    print(f"ms an image ({clock(device).__name__}, median, minimum), {device_name(device)}")
    for size in args.sizes:
        for batch in args.batches:
            rows.append(measure(size, batch, slices, device, args))
            for name, row in rows[-1]["milliseconds_per_image"].items():
                print(f"{size:5d} {batch:3d} {name:28} {row['median']:8.1f} {row['min']:8.1f}   {row['speedup']:5.1f}×",
                      flush=True)

    judged = [{"slice": name, "quality": judge(gray, regions, device)} for name, gray, regions in real]
    summary = summarise(judged)
    for dataset, methods in summary.items():
        print(f"{dataset}, {methods['slices']} slices: residual std, under-segmentation error, superpixels")
        for name in (SCIKIT, SCIKIT_FREE, "torch"):
            means = methods[name]
            print(f"  {name:28} {means['residual_std']:.4f} {means['under_segmentation_error']:.4f} "
                  f"{means['superpixels']:.0f}")
    write_result({"clock": clock(device).__name__, "images": "lung_ct_volume" if real else "phantom",
                  "compactness": COMPACTNESS, "iterations": ITERATIONS, "rows": rows, "quality": summary,
                  "slices": judged}, "slic", device, args.output)


if __name__ == "__main__":
    main()
