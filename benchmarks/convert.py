"""How fast and in how much memory is `convert`, compared with SimpleITK reading and writing the same files?

    python -m benchmarks.convert [--jobs 1 2] [--volumes 8] [--rounds 3]

Full-size volumes of 512 × 512 × 40 voxels are made in a temporary folder: copies of a real chest CT where there is one
(../shared/data/lung_ct_volume), else a phantom; all are labelled, as .nii.gz. Both read and write every image and
label map. `plain` is SimpleITK's ReadImage and WriteImage, without a check; ours also turns, checks (all bytes, NaN,
geometry, label values), hashes and reports, and looks at what was written. The DICOM series of the second part are
read by GDCM in both.

Every conversion is a process of its own; the peak is the highest sum of the resident memory of it and its children,
looked up every 20 ms. Contenders take turns. Prints a table and writes benchmarks/results/convert_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_synth.parallel import parallel_map

SHAPE = (40, 512, 512)
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "lung_ct_volume"
SECONDS_BETWEEN_LOOKS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--volumes", type=int, default=8, help="NIfTI volumes (default: 8)")
    parser.add_argument("--series", type=int, default=4, help="DICOM series (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=4, metavar=("WHO", "SOURCE", "TARGET", "JOBS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        who, source, target, jobs = args.child
        print(json.dumps(timed(CONTENDERS[who], Path(source), Path(target), int(jobs))))
        return

    # Not at the top, because neither contender needs it.
    import torch

    from benchmarks.record import write_result
    rows = []
    with tempfile.TemporaryDirectory(prefix="nnunet_synth_benchmark_") as folder:
        origin = make_sources(Path(folder), args.volumes, args.series)
        for kind, number in (("nifti", args.volumes), ("dicom", args.series)):
            for jobs in args.jobs:
                rows.append({"kind": kind, "jobs": jobs, "series": number,
                             **compare(Path(folder), kind, jobs, number, args.rounds)})
    print(f"{'source':8} {'jobs':>4} {'':8} {'series/s':>9} {'processor s/series':>19} {'peak MiB':>9}")
    for row in rows:
        for who in CONTENDERS:
            print(f"{row['kind']:8} {row['jobs']:4d} {who:8} {row[who]['series_per_second']:9.2f} "
                  f"{row[who]['processor_seconds_per_series']:19.2f} {row[who]['peak_mib']:9.0f}")
        print(f"{'':14}convert takes {row['times_plain']['seconds']:.2f} x the time of plain, "
              f"{row['times_plain']['processor_seconds']:.2f} x its processor time")
    libraries = {name: version(name) for name in ("SimpleITK", "numpy", "pydicom")}
    write_result({"shape": SHAPE, "volume": origin, "rounds": args.rounds, "libraries": libraries, "rows": rows},
                 "convert", torch.device("cpu"), args.output)


def compare(folder: Path, kind: str, jobs: int, number: int, rounds: int) -> dict:
    """Medians of all rounds, in which the contenders take turns, so that other load on the machine meets both alike."""
    runs = {who: [] for who in CONTENDERS}
    for turn in range(rounds):
        for who in CONTENDERS:
            runs[who].append(measure(who, folder / kind, folder / "written" / f"{kind}_{who}_{jobs}_{turn}", jobs))
    clocks = ("seconds", "processor_seconds")
    medians = {who: {clock: statistics.median(run[clock] for run in found) for clock in clocks}
               for who, found in runs.items()}
    return {**{who: {"series_per_second": round(number / medians[who]["seconds"], 3),
                     "processor_seconds_per_series": round(medians[who]["processor_seconds"] / number, 3),
                     "peak_mib": max(run["peak_mib"] for run in found), "runs": found}
               for who, found in runs.items()},
            "times_plain": {clock: round(medians["convert"][clock] / medians["plain"][clock], 3) for clock in clocks}}


def measure(who: str, source: Path, target: Path, jobs: int) -> dict[str, float]:
    """One conversion in a process of its own: what `timed` says, and the peak of its memory; its output is removed."""
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.convert", "--child", who, str(source), str(target), str(jobs)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env={**os.environ, "nnUNet_raw": str(target), "nnUNet_preprocessed": str(target),
                               "OMP_NUM_THREADS": "1"}) as child:
        while child.poll() is None:
            peak = max(peak, resident_bytes(child.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        printed = child.stdout.read()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    shutil.rmtree(target)
    return {**json.loads(printed.splitlines()[-1]), "peak_mib": round(peak / 2**20, 1)}


def resident_bytes(pid: int) -> int:
    """Of a process and all that it started; 0 for one that has just ended."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]
    except (OSError, IndexError):
        return 0
    return own + sum(map(resident_bytes, children))


# ----------------------------------------------------------------------------------------------------------------------
# The contenders, each in a process of its own


def timed(convert: Callable[[Path, Path, int], None], source: Path, target: Path, jobs: int) -> dict[str, float]:
    """Wall and processor seconds, workers and imports included, but not the start of Python."""
    start, before = time.perf_counter(), os.times()
    convert(source, target, jobs)
    seconds, after = time.perf_counter() - start, os.times()
    return {"seconds": round(seconds, 3), "processor_seconds": round(sum(after[:4]) - sum(before[:4]), 3)}


def ours(source: Path, target: Path, jobs: int) -> None:
    from nnunet_synth.commands.convert import convert
    report = convert("folder", source / "scans", 1, labels=source / "labels", jobs=jobs)
    if report.rejected or not report.cases:
        raise RuntimeError(f"rejected: {report.rejected}")


def plain(source: Path, target: Path, jobs: int) -> None:
    items = [*sorted((source / "scans").iterdir()), *sorted((source / "labels").iterdir())]
    for _ in parallel_map(partial(read_and_write, target=target), items, jobs):
        pass


def read_and_write(path: Path, target: Path) -> None:
    if path.is_dir():
        image = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    else:
        image = SimpleITK.ReadImage(str(path))
    name = f"{path.parent.name}_{path.name.split('.')[0]}.nii.gz"
    SimpleITK.WriteImage(image, str(target / name), useCompression=True)


CONTENDERS = {"plain": plain, "convert": ours}


# ----------------------------------------------------------------------------------------------------------------------
# What they convert


def make_sources(folder: Path, num_volumes: int, num_series: int) -> str:
    """Write nifti/{scans,labels} and dicom/{scans,labels}; returns where the volume comes from."""
    from tests.makers.dicom import CTSeries
    hu, label, origin = volume()
    for kind, number in (("nifti", num_volumes), ("dicom", num_series)):
        for part in ("scans", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for index in range(number):
            series = CTSeries(hu, spacing=(5.0, 0.7, 0.7), series=f"{index}", origin=(-180.0, -180.0, 0.0))
            save(label, series, folder / kind / "labels" / f"case_{index}.nii.gz")
            if kind == "dicom":
                series.write(folder / kind / "scans" / f"case_{index}")
            else:
                save(hu, series, folder / kind / "scans" / f"case_{index}.nii.gz")
    return origin


def volume() -> tuple[np.ndarray, np.ndarray, str]:
    """HU and label [z, y, x], and where they come from."""
    if (REAL / "lung1_image.nrrd").is_file():
        read = lambda name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(REAL / name)))      # noqa: E731
        tumour = read("lung1_label.nrrd") > 0
        return read("lung1_image.nrrd")[:SHAPE[0]], tumour[:SHAPE[0]].astype(np.uint8), "real: lung_ct_volume/lung1"
    from nnunet_synth.data.phantom import PhantomSettings, draw_case
    case = draw_case(np.random.SeedSequence(0), PhantomSettings(size=SHAPE[1], num_slices=SHAPE[0], slice_spacing=5.0))
    return case.image, case.label, "phantom"


def save(array: np.ndarray, series: object, path: Path) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(series.spacing[::-1])
    image.SetOrigin(series.origin)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


if __name__ == "__main__":
    main()
