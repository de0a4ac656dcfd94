"""Train a synthesizer, or a source of masks from noise, on the training cases of one fold.

Validation cases are never read, and every checkpoint can be resumed with --c. At the end a synthesizer draws images for
augmented training labels and is measured: how well an analytic segmenter finds the requested lesions in them
("segmentability"), against the real slices and against exchanged labels. A mask source (--mask-source v2um, v2m) is
compared with real masks; nnunet_synth sample --from noise draws from it.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_synth.argument_types import whole
from nnunet_synth.bounds import BATCH, SEED, SIDE, STEPS
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from nnunet_synth.data.experiment import Experiment
    from nnunet_synth.data.montages import MontageSlices
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.synthesizers.base import Synthesizer, SynthMeta, Trainable

EXAMPLE = "nnunet_synth pretrain 501 2d 0 --synthesizer sean --device cuda"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("configuration", metavar="CONFIG", help="configuration of the plans, e.g. 2d")
    parser.add_argument("fold", metavar="FOLD", help="fold: number, name of an entry of splits_final.json, or all")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument("--synthesizer", default=None,
                         help="registered name (default: what the configuration names, else sean)")
    trained.add_argument("--mask-source", default=None, metavar="NAME",
                         help="train what draws masks from noise instead: v2um (unsupervised masks) or v2m (labels)")
    parser.add_argument("--montage", default=None, metavar="ROWSxCOLUMNS",
                        help="train on montages of slices of a case, e.g. 2x2 (default: on single slices)")
    parser.add_argument("--preset", default=None,
                        help="tiny, default or paper (default: what the configuration names for its synthesizer, else "
                             "default)")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", dest="options",
                        help="change one hyper-parameter of the preset, e.g. ngf=16; may be repeated")
    parser.add_argument("--slices", nargs="+", default=None, metavar="CASE:INDEX", dest="chosen_slices",
                        help="for cosingan: the slice of each model, or auto = those with the largest lesions "
                             "(the default)")
    parser.add_argument("--max-scale", type=whole(SIDE), default=None, metavar="SIDE",
                        help="for cosingan: stop its pyramid at this side in pixels (default: the patch's)")
    parser.add_argument("--steps", type=whole(STEPS), default=None, help="generator steps (default: the preset's)")
    parser.add_argument("--batch-size", type=whole(BATCH), default=None, help="(default: the preset's)")
    parser.add_argument("--patch-size", type=whole(SIDE), nargs=2, default=None, metavar=("H", "W"),
                        help="size of the training crops (default: the plan's 2D patch, at most 256, 512 for cosingan; "
                             "no limit for mask sources; as many times larger for montages)")
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--seed", type=whole(SEED), default=0, help="(default: %(default)s)")
    parser.add_argument("--perceptual", default="auto", metavar="FEATURES",
                        help="features of the perceptual loss: vgg19, off, the fold folder of a trained nnU-Net, or "
                             "auto = the first of vgg19, this fold's nnUNetTrainer, off that is at hand (the default)")
    parser.add_argument("--vgg-weights", default=None, metavar="FILE",
                        help="torchvision's vgg19-dcbb9e9d.pth, for machines without internet")
    parser.add_argument("--samples-every", type=whole(STEPS), default=500, metavar="N",
                        help="steps between pictures in samples/ (default: %(default)s)")
    parser.add_argument("--checkpoint-every", type=whole(STEPS), default=1000, metavar="N",
                        help="steps between checkpoints (default: %(default)s)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--c", action="store_true", dest="resume", help="continue an interrupted run")
    again.add_argument("--force", action="store_true", help="delete what is there and start again")


def run(args: argparse.Namespace) -> None:
    pretrain(**{name: value for name, value in vars(args).items() if name not in ("verb", "run")})


def pretrain(dataset: str | int, configuration: str, fold: int | str, *, synthesizer: str | None = None,
             mask_source: str | None = None, montage: str | None = None, preset: str | None = None,
             options: Sequence[str] = (), chosen_slices: Sequence[str] | None = None, max_scale: int | None = None,
             steps: int | None = None, batch_size: int | None = None, patch_size: Sequence[int] | None = None,
             device: str | None = None, seed: int = 0, perceptual: str = "auto", vgg_weights: str | None = None,
             plans: str = "nnUNetPlans", samples_every: int = 500, checkpoint_every: int = 1000, resume: bool = False,
             force: bool = False) -> SynthMeta:
    """Train, measure and store a synthesizer, or a mask source; returns what its meta.json says.

    Synthesizer, preset and options that are not given are those of the configuration's `nnunet_synth` block; a mask
    source, or another synthesizer than that of the block, has preset "default" and no options then. `chosen_slices` and
    `max_scale` are options, too.

    Raises:
        UserError: anything that the user can mend, with one line; see `nnunet_synth.synthesizers.pretrain.pretrain`.
    """
    import torch

    from nnunet_synth.data.experiment import load_experiment
    from nnunet_synth.data.montages import parse_montage
    from nnunet_synth.lock import only_writer
    from nnunet_synth.synthesizers.options import parse_options

    _check_positive(steps=steps, batch_size=batch_size, samples_every=samples_every, checkpoint_every=checkpoint_every)
    used_device, tiles = find_device(device), parse_montage(montage)
    experiment = load_experiment(dataset, configuration, fold, plans)
    flags = {"slices": list(chosen_slices) if chosen_slices else None, "max_scale": max_scale}
    trained_class, preset, config = choose(
        experiment, synthesizer, mask_source, preset,
        {**parse_options(options), **{key: value for key, value in flags.items() if value is not None}})
    folder = experiment.synthesizer_folder(trained_class.name)
    with only_writer(folder):
        _check_folder(folder, resume, force)
        _prepare_layouts(experiment)
        slices = training_slices(experiment, tiles)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            meta = describe(experiment, slices, trained_class, config, patch_size, tiles)
            model = trained_class.build(meta, config)
        features, name = (None, "off") if mask_source else find_features(perceptual, experiment, model, vgg_weights)
        if mask_source is None:
            print(f"perceptual loss: {name}")
        model.meta = replace(meta, preset=preset, perceptual=name, seed=seed)
        if model.takes_feature_set:
            _say_what_is_missing(features, experiment)

        model.prepare_training(slices)      # before anything is removed: it may refuse them
        if force:
            _remove(folder)
        return _train(model, slices, folder, is_mask_source=mask_source is not None, device=used_device, steps=steps,
                      batch_size=batch_size, seed=seed, resume=resume, perceptual=features,
                      samples_every=samples_every, checkpoint_every=checkpoint_every)


def _train(model: Trainable, slices: FoldSlices | MontageSlices, folder: Path, *, is_mask_source: bool, device: str,
           seed: int, resume: bool, **how: Any) -> SynthMeta:
    """Train and measure; of a run that is finished already, nothing is written."""
    from nnunet_synth.mask_sources.source import draw_mask_gallery
    from nnunet_synth.synthesizers.checkpoint import META_FILE, load_meta, save_meta
    from nnunet_synth.synthesizers.pretrain import pretrain as train

    before = load_meta(folder) if resume and (folder / META_FILE).exists() else None
    train(model, slices, folder, device=device, seed=seed, resume=resume,
          gallery=draw_mask_gallery if is_mask_source else None, **how)
    del model, how          # the training graph's memory
    if before is not None and before.metrics.get("finished"):
        print(f"{folder} is finished ({before.steps} steps): there is nothing to continue, and nothing was changed")
        return before

    trained, metrics, words = measure(folder, slices, device, seed, is_mask_source)
    meta = trained.meta.with_metrics(finished=True, **{key: _json_number(value) for key, value in metrics.items()})
    save_meta(meta, folder)
    print(words)
    print(f"{'mask source' if is_mask_source else 'synthesizer'}: {folder}")
    return meta


def choose(experiment: Experiment, synthesizer: str | None, mask_source: str | None, preset: str | None,
           options: dict[str, Any]) -> tuple[type[Trainable], str, Any]:
    """What is to be trained, its preset and its configuration. Raises UserError for unknown names and options."""
    from nnunet_synth.config import TrainerConfig
    from nnunet_synth.mask_sources import find_mask_source
    from nnunet_synth.synthesizers import find_synthesizer
    from nnunet_synth.synthesizers.options import make_config

    if mask_source is not None:
        if synthesizer is not None:
            raise UserError("give --synthesizer or --mask-source, not both: they are trained one after another")
        trained_class, preset = find_mask_source(mask_source), preset or "default"
        return trained_class, preset, make_config(trained_class, preset, options)
    configured = TrainerConfig.from_plans_configuration(
        experiment.configuration_manager.configuration.get("nnunet_synth", {}))
    trained_class = find_synthesizer(synthesizer or configured.synthesizer)
    if trained_class.name == configured.synthesizer:        # what it says is said of this one alone
        preset, options = preset or configured.synthesizer_preset, {**configured.synthesizer_options, **options}
    preset = preset or "default"
    return trained_class, preset, make_config(trained_class, preset, options)


def training_slices(experiment: Experiment, montage: Sequence[int]) -> FoldSlices | MontageSlices:
    """The fold's labelled training slices, or montages [rows, columns] of them."""
    from nnunet_synth.data.montages import MontageSlices
    from nnunet_synth.data.slices import FoldSlices
    slices = FoldSlices(experiment)
    return MontageSlices(slices, *montage) if montage else slices


def measure(folder: Path, slices: FoldSlices | MontageSlices, device: str, seed: int,
            is_mask_source: bool) -> tuple[Trainable, dict[str, float], str]:
    """What was trained, as it will be used: from its folder; its measures, and what they say in words."""
    if is_mask_source:
        from nnunet_synth.mask_sources import load_mask_source
        from nnunet_synth.mask_sources.measures import measure_mask_source
        trained = load_mask_source(folder, device)
        metrics = measure_mask_source(trained, slices, seed)
        return trained, metrics, (f"shares of the values, real and drawn: they differ by "
                                  f"{metrics['share_distance']:.3f} (0 = alike, 1 = disjoint); "
                                  f"variety, drawn / real: {metrics['variety']:.2f}")
    from nnunet_synth.evaluation.image_quality import measure_synthesizer
    from nnunet_synth.synthesizers.checkpoint import load_synthesizer
    trained = load_synthesizer(folder, device)
    metrics = measure_synthesizer(trained, slices, seed)
    return trained, metrics, report(metrics)


def report(metrics: dict[str, float]) -> str:
    """What the measures say, in words."""
    return (f"segmentability (Dice of a threshold segmenter): real {metrics['dice_real']:.3f}, "
            f"synthetic {metrics['dice_synthetic']:.3f} (ratio {metrics['ratio']:.2f}), "
            f"with exchanged labels {metrics['dice_permuted']:.3f}\n"
            f"lesion intensities: KL(real ‖ synthetic) {metrics['lesion_intensity_kl']:.3f} nats; "
            f"sharpness (variance of the Laplacian), synthetic / real: {metrics['sharpness_ratio']:.2f}; "
            f"drawable: {metrics['drawable']:.0%}")


# ----------------------------------------------------------------------------------------------------------------------
# What a synthesizer is trained for


def describe(experiment: Experiment, slices: FoldSlices | MontageSlices, trained_class: type[Trainable], config: Any,
             patch_size: Sequence[int] | None = None, montage: Sequence[int] = ()) -> SynthMeta:
    """All facts of the dataset that decide what the synthesizer, or mask source, may be used for.

    Raises:
        UserError: the patch is smaller than the synthesizer's divisor or no multiple of it, or not divisible into the
            slices of a montage.
    """
    import torch

    from nnunet_synth import __version__
    from nnunet_synth.data.intensities import intensity_range
    from nnunet_synth.synthesizers.base import SynthMeta

    meta = SynthMeta(
        synthesizer=trained_class.name, config=asdict(config), dataset=experiment.dataset_name,
        channel_names=experiment.channel_names, semantic=experiment.semantic, target_labels=slices.target_labels,
        intensity_range=intensity_range(experiment, slices), divisor=1,
        patch_size=list(patch_size or _patch_size(experiment, 1, None, montage, trained_class.max_patch)),
        fold=experiment.fold, train_case_ids=slices.case_ids, fingerprint_sha256=experiment.fingerprint_sha256,
        plans_sha256=experiment.plans_sha256, split_sha256=experiment.split_sha256, montage=list(montage),
        spacing=[float(step) for step in list(experiment.configuration_manager.spacing)[-2:]],
        package_version=__version__, versions={"torch": torch.__version__, "python": platform.python_version()})
    divisor = trained_class.build(meta, config).divisor
    size = _patch_size(experiment, divisor, patch_size, montage, trained_class.max_patch)
    if montage:
        slices.tile_size(size)
    return replace(meta, divisor=divisor, patch_size=size)


def _patch_size(experiment: Experiment, divisor: int, wanted: Sequence[int] | None, montage: Sequence[int],
                max_patch: int | None) -> list[int]:
    if wanted is not None:
        if any(side < divisor or side % divisor for side in wanted):
            raise UserError(f"--patch-size {' '.join(map(str, wanted))}: both sides must be multiples of {divisor}")
        return list(wanted)
    planned = list(experiment.configuration_manager.patch_size)[-2:]
    slices = [max(min(side, max_patch or side) // divisor, 1) * divisor for side in planned]
    return [side * number for side, number in zip(slices, montage or (1, 1), strict=True)]


def find_features(choice: str, experiment: Experiment, synthesizer: Synthesizer,
                  vgg_weights: str | None = None) -> tuple[nn.Module | None, str]:
    """The features of the perceptual loss and what they are called: `vgg19`, `nnunet:<folder>`, both, or `off`.

    `auto` gives a synthesizer that takes a `FeatureSet` all that is at hand, any other the first of the two.

    Raises:
        UserError: what was asked for by name cannot be had.
    """
    from nnunet_synth.data.segmentation_features import load_segmentation_features
    from nnunet_synth.synthesizers.feature_set import FeatureSet
    from nnunet_synth.synthesizers.perceptual import load_vgg19

    vgg = load_vgg19(vgg_weights) if choice in ("auto", "vgg19") else None
    if choice == "vgg19" and vgg is None:
        raise UserError("the weights of VGG19 are neither in torchvision's cache nor could they be downloaded: "
                        "name vgg19-dcbb9e9d.pth with --vgg-weights, or use --perceptual off")
    folder = None
    if choice == "auto":
        folder = _own_network(experiment) if vgg is None or synthesizer.takes_feature_set else None
    elif choice not in ("vgg19", "off"):
        folder = Path(choice)
        if not folder.is_dir():
            raise UserError(f"--perceptual {choice}: neither auto, vgg19 nor off, and no such folder")
    network = load_segmentation_features(folder, experiment, synthesizer.from_unit) if folder else None

    name = " + ".join([*(["vgg19"] if vgg is not None else []), *([f"nnunet:{folder.resolve()}"] if folder else [])])
    if not name:
        return None, "off"
    if synthesizer.takes_feature_set:
        return FeatureSet(vgg, network), name
    return network if vgg is None else vgg, name


def _own_network(experiment: Experiment) -> Path | None:
    """The results of stock nnU-Net on this fold, where there are any and they are of a 2D network."""
    from nnunet_synth.data.segmentation_features import find_checkpoint
    base = experiment.configuration_chain()[-1]
    folder = experiment.results_folder / f"nnUNetTrainer__{experiment.plans_name}__{base}" / f"fold_{experiment.fold}"
    has_two_dimensions = len(experiment.configuration_manager.patch_size) == 2
    return folder if has_two_dimensions and find_checkpoint(folder) is not None else None


def _say_what_is_missing(features: nn.Module | None, experiment: Experiment) -> None:
    from nnunet_synth.synthesizers.feature_set import as_feature_set
    found = as_feature_set(features)
    if found.classification is None:
        print("MS-FVL is off: it needs the weights of VGG19 (--perceptual auto, --vgg-weights FILE)")
    if found.segmentation is None:
        print("MS-FUL is off: it needs a 2D nnU-Net of this fold (nnUNetv2_train "
              f"{experiment.dataset_name[7:10]} 2d {experiment.fold}, then --perceptual auto or its fold folder)")


# ----------------------------------------------------------------------------------------------------------------------
# Checks


def find_device(name: str | None) -> str:
    """`name`, or cuda where there is one. Raises UserError when it cannot be used."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UserError(f"--device {name}: give cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu, or "
                        "install torch with CUDA")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA device(s), counted from 0")
    return name


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} {number}: must be at least 1")


def _check_folder(folder: Path, resume: bool, force: bool) -> None:
    from nnunet_synth.synthesizers.checkpoint import META_FILE, TRAIN_STATE_FILE, WEIGHTS_FILE, load_meta
    if resume or force or not any((folder / name).exists() for name in (META_FILE, TRAIN_STATE_FILE, WEIGHTS_FILE)):
        return
    # Killed or out of disk between the two files of its first checkpoint, a run has no meta.json yet.
    progress = f"of {load_meta(folder).steps} steps" if (folder / META_FILE).exists() else "in training"
    again = "continue it with --c, or start" if (folder / TRAIN_STATE_FILE).exists() else "start"
    raise UserError(f"{folder} already holds a synthesizer {progress}: {again} again with --force")


def _prepare_layouts(experiment: Experiment) -> None:
    """Layouts and clusters must lie beside the preprocessed cases; the pool comes with them, as training needs both."""
    from nnunet_synth.data.unlabelled import preprocess_pool
    if not experiment.layout_labels:
        print("warning: this dataset has no layouts (layoutsTr and layoutsUl): the synthesizer only knows background "
              "and labels and must invent the anatomy; see nnunet_synth layouts --help", file=sys.stderr)
    has_maps = experiment.layout_labels or (experiment.raw_folder / "clustersTr").is_dir()
    if has_maps:
        for warning in preprocess_pool(experiment, waits=True).warnings:
            print(f"warning: {warning}", file=sys.stderr)


def _remove(folder: Path) -> None:
    """Only what a synthesizer's training writes, and what nnunet_synth select said of it."""
    from nnunet_synth.atomic import remove_folder
    for name in ("model.safetensors", "meta.json", "train_state.pt", "log.jsonl", "progress.png",
                 "classifier.safetensors", "selection.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("samples", "checkpoints"):
        remove_folder(folder / name)


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None      # JSON has no NaN
