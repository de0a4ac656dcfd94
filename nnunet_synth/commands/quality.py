"""Are synthetic images like real ones, and as varied? FID, KID, MM-FID and MM-STD, sharpness, noise and lesions.

REAL and SYNTHETIC are folders of pictures or volumes, or nnU-Net raw datasets (a folder, an id or a name: the training
images; .../imagesTs for another part). Volumes are cut into slices. Several SYNTHETIC are compared with each other;
NAME=FOLDER gives one a name. All images must have one size.

  nnunet_synth quality 501 601                          the training images of two datasets
  nnunet_synth quality real/ sean=a/ um2i=b/            three folders, two of them with names

With --synthesizer the arguments are DATASET CONFIG FOLD [SYNTHETIC ...], as for pretrain and sample: REAL is then a
random sample of the fold's labelled training slices, cut as the synthesizers learnt them, and each synthesizer draws as
many images for labels of such slices. Further SYNTHETIC must have that size, as those that `sample` wrote have.

  nnunet_synth quality 501 2d 0 --synthesizer sean um2i

MM-FID and MM-STD (UM2I) compare the sets at several resolutions through several networks: one trained on ImageNet, the
encoder of an nnU-Net (--segmentation, or found for the fold), and networks trained on the spot: real against synthetic,
and sex and age group where a metadata.csv beside REAL (or --metadata) gives them. docs/quality.md explains the numbers.

Writes report.html, report.md, report.json and quality.json into --output. Images are kept in the system's folder for
temporary files (TMPDIR) meanwhile, 5 bytes a pixel.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_synth.argument_types import real, whole
from nnunet_synth.bounds import IMAGES, SEED, SIDE, STEPS
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunet_synth.quality.extractor import Extractor
    from nnunet_synth.quality.image_set import ImageSet
    from nnunet_synth.quality.measure import Quality, QualityOptions
    from nnunet_synth.quality.sources import Selection, Source
    from nnunet_synth.quality.window import Window

EXAMPLE = "nnunet_synth quality 501 601 --output quality_of_601"

REAL = "real"           # the name of the first set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sets", metavar="SET", nargs="+",
                        help="REAL SYNTHETIC ..., or DATASET CONFIG FOLD [SYNTHETIC ...] with --synthesizer")
    parser.add_argument("--output", type=Path, default=Path("quality"), metavar="FOLDER",
                        help="where the report goes; a former one is replaced (default: %(default)s)")
    parser.add_argument("--synthesizer", nargs="+", default=[], metavar="NAME", help="registered names")
    parser.add_argument("-p", "--plans", default="nnUNetPlans",
                        help="name of the plans, with --synthesizer (default: %(default)s)")
    parser.add_argument("-n", type=whole(IMAGES), default=1000, dest="number", metavar="N",
                        help="images of each set, evenly taken from cases and slices; 0 = all (default: %(default)s)")
    parser.add_argument("--lesions-only", action="store_true", help="take only slices with a lesion")
    parser.add_argument("--labels", nargs="+", metavar="LABEL",
                        help="labels that are lesions: names or values (default: all foreground)")
    parser.add_argument("--size", type=whole(SIDE), metavar="PIXELS", help="resize all images to PIXELS × PIXELS first")
    parser.add_argument("--window", type=real(), nargs=2, metavar=("LOW", "HIGH"),
                        help="intensities that count (default: those in which SYNTHETIC was drawn where its "
                             "dataset.json tells, -1250 250 for other CT, 0 255 for 8-bit pictures, else the 0.5 and "
                             "99.5 percentiles of REAL)")
    parser.add_argument("--resolutions", type=whole(SIDE), nargs="+", metavar="PIXELS",
                        help="of MM-FID and MM-STD (default: 128 256 512 1024, the paper's)")
    parser.add_argument("--extractors", nargs="+", metavar="NAME",
                        help="networks of MM-FID and MM-STD: imagenet, segmentation, real-or-synthetic, sex, age "
                             "(default: all that can be had)")
    parser.add_argument("--imagenet", default="auto", metavar="NAME",
                        help="fid-inception, inception, efficientnet-lite0, or auto for the first whose weights can be "
                             "had (default: %(default)s)")
    parser.add_argument("--imagenet-weights", type=Path, metavar="FILE", help="the weights of that network")
    parser.add_argument("--segmentation", type=Path, metavar="FOLDER",
                        help="fold folder of a trained 2d nnU-Net (…/nnUNetTrainer__nnUNetPlans__2d/fold_0)")
    parser.add_argument("--metadata", type=Path, metavar="FILE",
                        help="CSV with id, sex and age of the real cases (default: metadata.csv in REAL's dataset)")
    parser.add_argument("--classifier", default="inception_v3",
                        help="network trained on the spot: inception_v3, resnet18 or googlenet (default: %(default)s)")
    parser.add_argument("--classifier-steps", type=whole(STEPS), default=300,
                        help="of its training (default: %(default)s)")
    parser.add_argument("--classifier-resolution", type=whole(SIDE), default=256, metavar="PIXELS",
                        help="of its training images; the paper's is 1024 (default: %(default)s)")
    parser.add_argument("--num-probed", type=whole(IMAGES), default=32, metavar="N",
                        help="images of each set whose noise is measured (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--seed", type=whole(SEED), default=0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from nnunet_synth.quality.classifier import ClassifierOptions
    from nnunet_synth.quality.measure import QualityOptions
    from nnunet_synth.quality.mm_fid import RESOLUTIONS
    from nnunet_synth.quality.sources import Selection
    classifier = ClassifierOptions(args.classifier, args.classifier_steps, resolution=args.classifier_resolution,
                                   seed=args.seed)
    quality(*args.sets, synthesizers=args.synthesizer, output=args.output, plans=args.plans,
            selection=Selection(args.number or None, args.lesions_only, args.labels, args.size), window=args.window,
            networks=Networks(args.imagenet, args.imagenet_weights, args.segmentation), metadata=args.metadata,
            options=QualityOptions(args.extractors, args.resolutions or RESOLUTIONS, classifier, args.num_probed,
                                   args.seed), device=args.device)


@dataclass(frozen=True)
class Networks:
    """Which trained networks are used; see the options of these names."""

    imagenet: str = "auto"
    imagenet_weights: str | Path | None = None
    segmentation: str | Path | None = None


def quality(*sets: str | int | Path, synthesizers: Sequence[str] = (), output: str | Path = "quality",
            plans: str = "nnUNetPlans", selection: Selection | None = None, window: Sequence[float] | None = None,
            networks: Networks | None = None, metadata: str | Path | None = None,
            options: QualityOptions | None = None, device: str | None = None) -> Quality:
    """Do what this module's docstring says; returns all results.

    Args:
        sets: REAL, SYNTHETIC, …; with synthesizers DATASET, CONFIG, FOLD, SYNTHETIC, ….

    Raises:
        UserError: a mistake in the arguments, images that cannot be read or compared, or weights that were asked for
            and cannot be had.
    """
    from nnunet_synth.commands.pretrain import find_device
    from nnunet_synth.quality.measure import QualityOptions, measure_quality
    from nnunet_synth.quality.report import write_quality
    from nnunet_synth.quality.sources import Selection
    from nnunet_synth.quality.window import Window, choose_window, drawn_window

    selection, networks = selection or Selection(), networks or Networks()
    options = replace(options or QualityOptions(), device=find_device(device))
    given = None if window is None else Window(*window)
    if Path(output).is_file():
        raise UserError(f"--output {output} is a file: name a folder")
    origins = _Fold(sets, synthesizers, plans, selection, options) if synthesizers else _Folders(sets, selection)
    known = _metadata(metadata, origins.metadata)
    with tempfile.TemporaryDirectory(prefix="nnunet_synth_quality_") as scratch:
        real = origins.read_real(Path(scratch))
        used_window = given or drawn_window(origins.drawn_ranges) or choose_window(real, origins.is_ct)
        # Before anything is drawn: whether the networks can be had.
        loaded, missing = _load(networks, origins.own_network, used_window, real.shape[0], options)
        methods = list(origins.read_methods(Path(scratch)))
        found = measure_quality(real, methods, used_window, loaded, missing, options, known)
        page = write_quality(found, Path(output), _facts(origins.command, selection, options))
    print(summary(found))
    print(f"The report: {page}")
    return found


def summary(quality: Quality) -> str:
    """A line a method; FID only of sets that hold enough images for one."""
    lines, has_fid = [], quality.has_enough_for_fid
    for method in quality.methods:
        numbers = {"FID": quality.headline.fid[method.name]} if has_fid else {}
        numbers |= {"KID": quality.headline.kid[method.name]} if quality.headline else {}
        numbers |= {"MM-FID": sum(quality.fid[method.name]) / len(quality.fid[method.name]),
                    "MM-STD": sum(quality.deviation[method.name]) / len(quality.deviation[method.name])}
        shown = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        lines.append(f"{method.name} ({len(method)} images): {shown}")
    network = quality.extractors.get("imagenet")
    if quality.headline and not has_fid:
        lines.append(f"FID stands in the report only: its {quality.headline.num_features} features need more images "
                     "than that in each set; KID does not depend on their number")
    return "\n".join([*lines, f"Intensities: {quality.window.low:g} to {quality.window.high:g} "
                      f"({quality.window.reason})", *([f"FID and KID: {network}"] if network else [])])


# ----------------------------------------------------------------------------------------------------------------------
# Where the sets come from


class _Folders:
    """REAL SYNTHETIC …, all of them folders or datasets."""

    own_network = None

    def __init__(self, sets: Sequence[str | int | Path], selection: Selection) -> None:
        if len(sets) < 2:
            raise UserError("give REAL and one SYNTHETIC or more, or DATASET CONFIG FOLD with --synthesizer")
        from nnunet_synth.quality.sources import find_source
        self.selection = selection
        self.real = find_source(sets[0])
        self.methods = _named_sources(sets[1:], {self.real.folder.resolve(): "REAL"}, {REAL})
        self.is_ct, self.metadata = self.real.is_ct, self.real.metadata
        self.drawn_ranges = {name: source.drawn_range for name, source in self.methods.items()}
        self.command = " ".join(map(str, sets))

    def read_real(self, scratch: Path) -> ImageSet:
        from nnunet_synth.quality.sources import read_images
        return read_images(self.real, REAL, scratch / REAL, self.selection)

    def read_methods(self, scratch: Path) -> Iterator[ImageSet]:
        yield from _read_all(self.methods, scratch, self.selection)


class _Fold:
    """DATASET CONFIG FOLD SYNTHETIC … with synthesizers."""

    def __init__(self, sets: Sequence[str | int | Path], synthesizers: Sequence[str], plans: str, selection: Selection,
                 options: QualityOptions) -> None:
        from nnunet_synth.commands.sample import load_fitting_synthesizer
        from nnunet_synth.data.experiment import load_experiment
        from nnunet_synth.data.segmentation_features import find_checkpoint
        from nnunet_synth.data.slices import FoldSlices
        from nnunet_synth.quality.fold_images import FoldImages

        if len(sets) < 3:
            raise UserError("with --synthesizer give DATASET CONFIG FOLD, as for nnunet_synth sample")
        if selection.limit is None:
            raise UserError("-n 0: with --synthesizer say how many images are to be drawn")
        dataset, configuration, fold, *others = sets
        experiment = load_experiment(str(dataset), str(configuration), str(fold), plans)
        taken = {(experiment.raw_folder / "imagesTr").resolve(): "the dataset itself"}
        self.others = _named_sources(others, taken, {REAL, *synthesizers})
        self.models = {name: load_fitting_synthesizer(experiment, name, options.device) for name in synthesizers}
        meta = next(iter(self.models.values())).meta
        self.images = FoldImages(
            experiment, FoldSlices(experiment), tuple(meta.patch_size), meta.intensity_range,
            _lesion_values(experiment.foreground_labels, selection.labels), selection.limit, selection.lesions_only,
            selection.size, options.seed)
        self.selection = selection
        self.drawn_ranges = {name: source.drawn_range for name, source in self.others.items()}
        self.is_ct = [name.lower() for name in experiment.channel_names] == ["ct"]
        self.metadata = experiment.raw_folder / "metadata.csv"
        base = experiment.configuration_chain()[-1]
        own = experiment.results_folder / f"nnUNetTrainer__{experiment.plans_name}__{base}" / f"fold_{experiment.fold}"
        is_flat = len(experiment.configuration_manager.patch_size) == 2
        self.own_network = own if is_flat and find_checkpoint(own) else None
        self.command = " ".join([*map(str, sets), "--synthesizer", *synthesizers])

    def read_real(self, scratch: Path) -> ImageSet:
        return self.images.real(REAL, scratch / REAL)

    def read_methods(self, scratch: Path) -> Iterator[ImageSet]:
        from nnunet_synth.commands.sample import draw
        for name, model in self.models.items():
            yield self.images.drawn(name, model, partial(draw, number=sys.maxsize, seed=self.images.seed),
                                    scratch / f"drawn_{name}")
        yield from _read_all(self.others, scratch, self.selection)


def _named_sources(sets: Sequence[str | int | Path], taken: Mapping[Path, str], names: set[str]) -> dict[str, Source]:
    """Name → source of every SYNTHETIC; the name is given (NAME=FOLDER), or that of the folder or dataset.

    Raises:
        UserError: a folder or name twice, or a folder that is among `taken`.
    """
    from nnunet_synth.quality.sources import PARTS, find_source
    sources: dict[str, Source] = {}
    folders = dict(taken)
    for where in map(str, sets):
        given, is_named, rest = where.partition("=")
        is_named = bool(is_named) and not Path(where).exists()
        source = find_source(rest if is_named else where)
        folder = source.folder.resolve()
        if folder in folders:
            raise UserError(f"{where} is the same folder as {folders[folder]} ({source.folder}): a set is not compared "
                            "with itself, give another one")
        name = given if is_named else (folder.parent if folder.name in PARTS else folder).name
        if name in names or name in sources:
            raise UserError(f"two sets are called {name}: give one another name, NAME={rest if is_named else where}")
        folders[folder], sources[name] = where, source
    return sources


def _read_all(sources: Mapping[str, Source], scratch: Path, selection: Selection) -> Iterator[ImageSet]:
    from nnunet_synth.quality.sources import read_images
    for number, (name, source) in enumerate(sources.items()):
        yield read_images(source, name, scratch / f"set_{number}", selection)


def _lesion_values(declared: Mapping[str, int], wanted: Sequence[str] | None) -> list[int]:
    """Values of the labels called (or valued) as in `wanted`; None = all."""
    if wanted is None:
        return sorted(declared.values())
    known = {**{str(value): value for value in declared.values()}, **declared}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"unknown label {unknown[0]!r}: this dataset declares {', '.join(declared)}")
    return sorted(known[name] for name in wanted)


# ----------------------------------------------------------------------------------------------------------------------
# Networks and metadata


def _load(networks: Networks, own_network: Path | None, window: Window, num_channels: int,
          options: QualityOptions) -> tuple[list[Extractor], dict[str, str]]:
    """The trained networks that can be had, and why others cannot.

    Raises:
        UserError: one that was asked for by name cannot be had.
    """
    from nnunet_synth.quality.imagenet import load_imagenet
    from nnunet_synth.quality.segmentation_encoder import load_segmentation_encoder
    loaded, missing = [], {}
    if options.wants("imagenet"):
        try:
            loaded.append(load_imagenet(networks.imagenet, window, options.device, networks.imagenet_weights))
        except UserError as error:
            if options.extractors is not None or networks != replace(networks, imagenet="auto", imagenet_weights=None):
                raise
            missing["imagenet"] = str(error)
            print(f"warning: no FID and KID: {error}", file=sys.stderr)
    if options.wants("segmentation"):
        folder = networks.segmentation or own_network
        if folder is not None:
            loaded.append(load_segmentation_encoder(folder, num_channels, options.device))
        elif options.extractors is not None:
            raise UserError("--extractors segmentation: name the fold folder of a trained 2d nnU-Net with "
                            "--segmentation FOLDER")
        else:
            missing["segmentation"] = "no trained 2d nnU-Net was named (--segmentation FOLDER)"
    return loaded, missing


def _metadata(given: str | Path | None, beside: Path) -> dict[str, dict[str, str]]:
    from nnunet_synth.quality.metadata import read_metadata
    if given is not None:
        return read_metadata(Path(given))
    return read_metadata(beside) if beside.is_file() else {}


def _facts(command: str, selection: Selection, options: QualityOptions) -> dict[str, Any]:
    import torch

    from nnunet_synth import __version__
    device = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "compared": command,
            "selection": asdict(selection), "options": asdict(options), "device": device,
            "machine": f"{platform.machine()}, {platform.system()}", "Python": platform.python_version(),
            "nnunet_synth": __version__, "torch": torch.__version__}
