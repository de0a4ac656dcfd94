"""Find the anatomy that the synthesizers draw around: left and right lung of every labelled and unlabelled case.

  --method threshold   classical image processing, for CT in HU and for 8-bit pictures of CT slices. Lung that is
                       consolidated throughout is not found, see the flagged cases in layouts_report.json.
  --method lungmask    the networks of J. Hofmanninger et al. (European Radiology Experimental 4:50, 2020), which find
                       consolidated lung and effusions, too: pip install 'nnunet_synth[lung]'. Made for CT in HU; to
                       pictures, a guess at their HU is given. Weights (124 MB a network) are fetched from
                       the package's releases into torch's hub folder, or given by --weights.
  --method labels      out of the dataset's own labels (--layout-labels, default left_lung right_lung); only labelled
                       cases have them. Lesions are given to the nearest lung.
  --method superpixel  for any organ and modality, without labels: every slice is cut into superpixels, and the classes
                       are their levels of gray (UM2I's unsupervised masks). CT is windowed to -1500 to 100 HU, other
                       images between their percentiles 0.05 and 99.95.
  --method cs2         the clusters that CS2 draws from, windowed in the same way: for each slice a small network is
                       trained to agree with itself on superpixels until four clusters are left. Half a minute of a CPU
                       core a slice, so give --device cuda or --jobs.

Writes layoutsTr/ and layoutsUl/ (0 none, 1 left lung, 2 right lung; of superpixels, 1 is the darkest level), declares
them in dataset.json, and lists in layouts_report.json how many litres each lung of each case has. Cases that have a
layout are kept and measured again, so an interrupted run goes on where it stopped. Correct a layout with any editor, or
replace it by a better one of the same shape.

With --into cluster, superpixels go to clustersTr/ and clustersUl/, as CS2's clusters do, and layouts stay what they
are: there the synthesizers look that draw from unsupervised masks and do not make their own.

Which lung is the left one follows from the image's geometry. A case is flagged, never changed, where the anatomy
contradicts it (heart on the right, spine in front) and where the volume is implausible.

With --images IN --masked OUT nothing is added to the dataset: the images of folder IN are copied to OUT with everything
outside the lungs set to air (-1024 HU, 0 in pictures), for predicting with a model trained with mask_outside_layout.
Exact for CT. Pictures that nnU-Net z-scores get another mean once they are masked: there it is an approximation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.argument_types import real, whole
from nnunet_synth.bounds import BATCH, JOBS, Bounds
from nnunet_synth.errors import UserError
from nnunet_synth.process_counts import check_jobs

if TYPE_CHECKING:
    from nnunet_synth.data.find_layouts import LayoutReport
    from nnunet_synth.data.lung_network import LungNetwork
    from nnunet_synth.data.superpixel_layouts import SuperpixelSettings

EXAMPLE = "nnunet_synth layouts 520 --method threshold --jobs 4"
METHODS = ("threshold", "lungmask", "labels", "superpixel", "cs2")
_MAX_FLAGGED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", nargs="?",
                        help="id or full name of the raw dataset (may be left out with --images)")
    parser.add_argument("--method", choices=METHODS, default="threshold", help="default: threshold")
    parser.add_argument("--jobs", type=whole(JOBS), default=1, metavar="N", help="worker processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="find again what is there already")
    parser.add_argument("--orientation", metavar="AXES",
                        help="pictures without geometry: where row and column index grow to, of L R A P (PL = the "
                             "usual display; default: what the converter wrote into dataset.json, else PL)")
    parser.add_argument("--layout-labels", nargs="+", metavar="NAME", default=["left_lung", "right_lung"],
                        help="--method labels: which labels of the dataset are anatomy")
    parser.add_argument("--inside", nargs="*", metavar="NAME",
                        help="--method labels: which labels lie inside the anatomy (default: all others)")
    parser.add_argument("--model", metavar="NAME",
                        help="--method lungmask: R231 (default), R231CovidWeb, LTRCLobes or LTRCLobes_R231, of which "
                             "the lobes are merged")
    parser.add_argument("--weights", metavar="FILE", help="--method lungmask: a file of weights instead of --model")
    parser.add_argument("--device", help="--method lungmask, cs2: cpu, cuda or cuda:1 (default: cuda where there is "
                                         "one)")
    parser.add_argument("--batch-size", type=whole(BATCH), metavar="N",
                        help="--method lungmask: slices at a time (default: 20; 1 on the CPU)")
    parser.add_argument("--segmentation", metavar="NAME",
                        help="--method superpixel: slic (default), slic_skimage or felzenszwalb")
    parser.add_argument("--segments", type=whole(Bounds(low=1, high=512**2)), metavar="M",
                        help="--method superpixel: how many in a slice of 512 x 512; smaller slices have fewer, of the "
                             "same area (default: 512; felzenszwalb chooses by itself)")
    parser.add_argument("--step", type=real(Bounds(low=0, high=255)), metavar="T",
                        help="--method superpixel: between two levels, of 255 gray values (default: 50)")
    parser.add_argument("--into", choices=("layout", "cluster"),
                        help="--method superpixel: write them as layouts (default) or as clusters")
    parser.add_argument("--images", metavar="IN", help="folder of images to mask; needs --masked")
    parser.add_argument("--masked", metavar="OUT", help="new folder for the masked copies")


def run(args: argparse.Namespace) -> None:
    layouts(args.dataset, args.method, jobs=args.jobs, overwrite=args.overwrite, orientation=args.orientation,
            layout_labels=args.layout_labels, inside=args.inside, images=args.images, masked=args.masked,
            model=args.model, weights=args.weights, device=args.device, batch_size=args.batch_size,
            segmentation=args.segmentation, segments=args.segments, step=args.step, into=args.into)


def layouts(dataset: str | int | None, method: str = "threshold", *, jobs: int = 1, overwrite: bool = False,
            orientation: str | None = None, layout_labels: list[str] | None = None, inside: list[str] | None = None,
            images: str | Path | None = None, masked: str | Path | None = None, model: str | None = None,
            weights: str | Path | None = None, device: str | None = None, batch_size: int | None = None,
            segmentation: str | None = None, segments: int | None = None, step: float | None = None,
            into: str | None = None) -> list[LayoutReport]:
    """Write the layouts of a raw dataset (or masked copies of `images`) and print how much of what each case has.

    Args: as on the command line.

    Raises:
        UserError: unknown dataset, method or label; an image that cannot be read; see
            `nnunet_synth.data.find_layouts.write_layouts` and `write_masked_images`,
            `nnunet_synth.data.superpixel_layouts.SuperpixelSettings`, and
            `nnunet_synth.data.lung_network.prepare_network`.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    check_jobs(jobs)
    orientation = _checked(orientation)
    if (images is None) != (masked is None):
        raise UserError("--images IN and --masked OUT belong together")
    if dataset is None and images is None:
        raise UserError("name the DATASET, by id or full name")

    if images is not None and method not in ("threshold", "lungmask"):
        what = "clusters" if method == "cs2" else f"{method}s"
        raise UserError(f"--images has no {what}: use --method threshold or lungmask")

    from nnunet_synth.data import find_layouts
    from nnunet_synth.lock import only_writer
    raw_folder = None if dataset is None else _raw_folder(dataset)
    network = _network(method, model, weights, device, batch_size)
    superpixels = _superpixels(method, segmentation, segments, step, into)
    with only_writer(raw_folder if masked is None else Path(masked)):
        if images is not None:
            description = find_layouts.read_dataset_json(raw_folder) if raw_folder else _describe(Path(images))
            reports = find_layouts.write_masked_images(Path(images), Path(masked), description, orientation, jobs,
                                                       network)
            done = f"masked copies written to {masked}"
        elif superpixels is not None:
            from nnunet_synth.data.superpixel_layouts import write_superpixels
            into = into or "layout"
            reports = write_superpixels(raw_folder, superpixels, into, jobs, overwrite)
            done = f"{into}s written to {raw_folder}; next: nnunet_synth preprocess {dataset} 2d"
        elif method == "cs2":
            from nnunet_synth.commands.pretrain import find_device
            from nnunet_synth.data.cluster_network import ClusterSettings
            from nnunet_synth.data.cs2_clusters import write_cs2_clusters
            reports = write_cs2_clusters(raw_folder, ClusterSettings(), find_device(device), jobs, overwrite)
            done = f"clusters written to {raw_folder}; next: nnunet_synth preprocess {dataset} 2d"
        else:
            reports = find_layouts.write_layouts(raw_folder, method, jobs, overwrite, orientation,
                                                 layout_labels or ["left_lung", "right_lung"], inside, network)
            done = f"layouts written to {raw_folder}; next: nnunet_synth preprocess {dataset} 2d"
    _print(reports)
    print(done)
    return reports


def _network(method: str, model: str | None, weights: str | Path | None, device: str | None,
             batch_size: int | None) -> LungNetwork | None:
    if method == "lungmask":
        from nnunet_synth.commands.pretrain import find_device
        from nnunet_synth.data.lung_network import prepare_network
        return prepare_network(model, weights, find_device(device), batch_size)
    if (model, weights, batch_size) != (None,) * 3 or (device is not None and method != "cs2"):
        raise UserError("--model, --weights, --device and --batch-size are options of --method lungmask")
    return None


def _superpixels(method: str, segmentation: str | None, segments: int | None, step: float | None,
                 into: str | None) -> SuperpixelSettings | None:
    given = {"segmentation": segmentation, "num_segments": segments, "step": step}
    given = {name: value for name, value in given.items() if value is not None}
    if method != "superpixel":
        if given or into is not None:
            raise UserError("--segmentation, --segments, --step and --into are options of --method superpixel")
        return None
    if into not in (None, "layout", "cluster"):
        raise UserError(f"--into {into}: choose layout or cluster")
    from nnunet_synth.data.superpixel_layouts import SuperpixelSettings
    return SuperpixelSettings(**given)


def _checked(orientation: str | None) -> str | None:
    if orientation is None:
        return None
    axes = orientation.upper()
    lines = {"L": 0, "R": 0, "A": 1, "P": 1}
    if len(axes) != 2 or sorted(lines.get(code, 2) for code in axes) != [0, 1]:
        raise UserError(f"--orientation {orientation}: give two letters, one of L R and one of A P, e.g. PL")
    return axes


def _raw_folder(dataset: str | int) -> Path:
    from nnunet_synth.data.experiment import environment_folder, find_dataset
    folder = environment_folder("nnUNet_raw") / find_dataset(dataset)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    return folder


def _describe(images: Path) -> dict[str, str]:
    """A stand-in for dataset.json: the file ending of a folder's images."""
    endings = sorted({file.name[file.name.index("_0000") + len("_0000"):] for file in images.glob("*_0000.*")
                      if not file.name.startswith(".")})
    if len(endings) != 1:
        found = f"found {', '.join(endings)}" if endings else "found none"
        raise UserError(f"{images} must hold images CASE_0000.ext of one file ending: {found}")
    return {"file_ending": endings[0]}


def _print(reports: list[LayoutReport]) -> None:
    import statistics
    kept = sum(report.status == "kept" for report in reports)
    print(f"{len(reports) - kept} case(s) done{f', {kept} kept as they were' if kept else ''}")
    for unit, name in (("l", "litres"), ("share", "share of the slice")):
        cases = [report for report in reports if report.unit == unit]
        for anatomy in cases[0].amounts if cases else ():
            values = [report.amounts[anatomy] for report in cases]
            print(f"{anatomy}, {name}: median {statistics.median(values):.2f} "
                  f"({min(values):.2f} to {max(values):.2f})")
    flagged = [report for report in reports if report.doubts]
    for report in flagged[:_MAX_FLAGGED]:
        amounts = ", ".join(f"{name} {amount:.2f}" for name, amount in report.amounts.items())
        print(f"look at {report.id}: {'; '.join(report.doubts)} ({amounts} {report.unit})")
    if len(flagged) > _MAX_FLAGGED:
        print(f"look at {len(flagged) - _MAX_FLAGGED} more (those of a dataset are listed in layouts_report.json)")
