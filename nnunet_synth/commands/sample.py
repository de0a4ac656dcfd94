"""Draw images with a trained synthesizer: to look at them, or as a normal nnU-Net raw dataset.

--from labels: for the labels and layouts of labelled training slices, moved and turned at random. --from pool: for the
anatomy of unlabelled slices, with lesion shapes taken from labelled training slices. --from noise: for masks that a
mask source draws (nnunet_synth pretrain --mask-source): unsupervised masks for UM2I, whose segmentation head then tells
the label, label maps for all others. --volumes: whole volumes, for the label volumes of the labelled training cases.
Intensities are those of the raw images again; PNG datasets get pictures, all others volumes of one slice. Montages are
cut into slices, unless --montage asks for them whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.argument_types import whole
from nnunet_synth.bounds import DATASET_ID, IMAGES, SEED
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nnunet_synth.data.experiment import Experiment
    from nnunet_synth.data.label_volumes import LabelVolume
    from nnunet_synth.data.montages import MontageSlices
    from nnunet_synth.data.slice_arrays import SliceArrays
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.mask_sources.source import MaskSource
    from nnunet_synth.synthesizers.base import Slices, Synthesizer, SynthMeta

EXAMPLE = "nnunet_synth sample 501 2d 0 --synthesizer sean --from labels -n 200 --as-dataset 601 --name Synthetic"

SOURCES = ("labels", "pool", "noise")
NUM_IMAGES = 16
BATCH_SIZE = 8
MAX_GALLERY_ROWS = 12
MAX_TRIES = 20          # donors tried until one leaves a lesion in the anatomy; batches without a drawable sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("configuration", metavar="CONFIG", help="configuration of the plans, e.g. 2d")
    parser.add_argument("fold", metavar="FOLD", help="fold that the synthesizer was trained on")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--synthesizer", default="sean", help="registered name (default: %(default)s)")
    parser.add_argument("--from", choices=SOURCES, default="labels", dest="source",
                        help="what to draw for (default: %(default)s)")
    parser.add_argument("--montage", default=None, metavar="ROWSxCOLUMNS",
                        help="write montages of so many slices, for a synthesizer that was trained on them")
    parser.add_argument("--volumes", action="store_true",
                        help="draw whole volumes for the label volumes of the labelled training cases")
    parser.add_argument("--paper-conditions", action="store_true",
                        help="as CoSinGAN's authors: volumes for the masks of all labelled cases, those of the "
                             "validation fold too. The result knows test masks and is marked so")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", dest="options",
                        help="change how a trained synthesizer draws: randomised_condition, image_fusion or dropout "
                             "= true or false of cosingan, diversity = none or dropout of lcgan and pix2pix; may be "
                             "repeated")
    parser.add_argument("-n", type=whole(IMAGES), default=None, dest="number", metavar="N",
                        help="number of images (default: 16) or volumes (default: all)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", metavar="FOLDER", help="a new folder for the images, labels and a gallery")
    target.add_argument("--as-dataset", type=whole(DATASET_ID), metavar="ID", help="write nnUNet_raw/DatasetID_NAME")
    parser.add_argument("--name", default="Synthetic", help="name of that dataset (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--seed", type=whole(SEED), default=0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    sample(**{name: value for name, value in vars(args).items() if name not in ("verb", "run")})


def sample(dataset: str | int, configuration: str, fold: int | str, *, synthesizer: str = "sean",
           source: str = "labels", montage: str | None = None, volumes: bool = False, paper_conditions: bool = False,
           options: Sequence[str] = (), number: int | None = None, output: str | Path | None = None,
           as_dataset: int | None = None, name: str = "Synthetic", device: str | None = None, seed: int = 0,
           plans: str = "nnUNetPlans") -> Path:
    """Draw `number` images or volumes; returns the folder they are in. It appears complete or not at all.

    Raises:
        UserError: no synthesizer or mask source or an unfitting one, no layouts for `pool`, or the target exists.
    """
    import torch

    from nnunet_synth.atomic import atomic_folder
    from nnunet_synth.commands.pretrain import find_device, training_slices
    from nnunet_synth.data.experiment import load_experiment
    from nnunet_synth.data.montages import parse_montage
    from nnunet_synth.dataset_conversion.synthetic import SyntheticWriter
    from nnunet_synth.lock import only_writer
    from nnunet_synth.progress import progress
    from nnunet_synth.synthesizers.gallery import write_gallery
    from nnunet_synth.synthesizers.options import apply_drawing_options, parse_options

    if number is not None and number < 1:
        raise UserError(f"-n {number}: must be at least 1")
    used_device, wanted_tiles = find_device(device), parse_montage(montage)
    experiment = load_experiment(dataset, configuration, fold, plans)
    target = _target(output, as_dataset, name)
    model = load_fitting_synthesizer(experiment, synthesizer, used_device, montage=None)
    _check_montage(model.meta, wanted_tiles)
    apply_drawing_options(model, parse_options(options))
    if volumes or paper_conditions:
        if source != "labels" or montage is not None or model.meta.montage:
            raise UserError("--volumes are drawn for label volumes, slice by slice: leave out --from and --montage, "
                            "and use a synthesizer of single slices")
        return sample_volumes(experiment, model, target, number, seed, paper_conditions)
    masks = None if source != "noise" else load_fitting_mask_source(experiment, model, used_device)
    slices = training_slices(experiment, model.meta.montage)
    model.fit_pool(slices)

    number = number or NUM_IMAGES
    drawn = draw_from_noise(model, masks, seed) if masks is not None else \
        draw(model, label_conditions(slices, model, seed) if source == "labels"
             else pool_conditions(experiment, slices, model, seed), None, seed)
    if model.meta.montage and not wanted_tiles:
        drawn = cut(drawn, model.meta.montage)
    is_labelled_by_head = masks is not None and masks.name == "v2um"
    provenance = {"from": source, "seed": seed, **({} if masks is None else {"mask_source": masks.name,
                                                                             "mask_source_steps": masks.meta.steps})}
    rows: list[tuple[np.ndarray, ...]] = []
    with torch.random.fork_rng([]), only_writer(target), atomic_folder(target) as folder:
        writer = SyntheticWriter(experiment, model.meta, folder, has_layouts=not is_labelled_by_head)
        for part, image in progress(islice(drawn, number), f"drawing with {synthesizer}", number):
            writer.write(part, image)
            if len(rows) < MAX_GALLERY_ROWS:
                rows.append(_gallery_row(model, part, image, shows_mask=is_labelled_by_head))
        write_gallery(rows, (*(("mask",) if is_labelled_by_head else ()), "label", "synthetic"),
                      folder / "gallery.png")
        writer.finish(target.name, provenance)
    print(f"{number} synthetic images: {target}")
    return target


def sample_volumes(experiment: Experiment, model: Synthesizer, target: Path, number: int | None, seed: int,
                   paper_conditions: bool) -> Path:
    """Whole volumes for the label volumes of the training cases, or of all labelled cases (`paper_conditions`); for
    each case as many as the synthesizer has variants.

    Raises:
        UserError: the dataset holds pictures; or `paper_conditions` of a synthesizer that would have to look at the
            scans; or none of the volumes could be drawn.
    """
    import torch

    from nnunet_synth.atomic import atomic_folder
    from nnunet_synth.data.label_volumes import read_label_volumes
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.dataset_conversion.synthetic import SyntheticWriter
    from nnunet_synth.lock import only_writer
    from nnunet_synth.progress import progress
    from nnunet_synth.synthesizers.gallery import write_gallery

    if experiment.plans["image_reader_writer"] == "NaturalImage2DIO":
        raise UserError(f"{experiment.dataset_name} holds pictures, which make no volumes: leave out --volumes")
    if paper_conditions and model.needs:
        raise UserError(f"synthesizer {model.name} needs the {', '.join(sorted(model.needs))} of a scan: "
                        "--paper-conditions are masks of cases whose scans it must not see")
    slices = FoldSlices(experiment)
    model.fit_pool(slices)
    case_ids = experiment.labelled_ids if paper_conditions else slices.case_ids
    conditions = read_label_volumes(experiment, case_ids, with_scans=not paper_conditions)
    total = len(case_ids) * len(model.variants)
    total = total if number is None else min(number, total)
    if paper_conditions:
        print("warning: these images are drawn for the masks of all labelled cases, those of the validation fold too: "
              "what is trained on them has seen test masks")
    rows, drawn_for = [], []
    with torch.random.fork_rng([]), only_writer(target), atomic_folder(target) as folder:
        writer = SyntheticWriter(experiment, model.meta, folder)
        for volume, variant, image in progress(islice(draw_volumes(model, conditions, seed), total),
                                               f"drawing volumes with {model.name}", total):
            writer.write_arrays(volume.label[0].numpy(), volume.layout[0].numpy(), volume.valid[0].numpy(), image,
                                volume.slice_spacing)
            drawn_for.append({"case": volume.case_id, "variant": variant})
            if len(rows) < MAX_GALLERY_ROWS:
                rows.append(_volume_row(model, volume, image))
        if not rows:
            raise UserError(f"synthesizer {model.name} has not seen the classes of any of these cases: it was trained "
                            "on too few slices")
        write_gallery(rows, ("label", "synthetic"), folder / "gallery.png")
        writer.finish(target.name, {"from": "label volumes", "seed": seed, "drawn_for": drawn_for,
                                    **{key: getattr(model.config, key) for key in model.drawing_options},
                                    "leaks_test_masks": paper_conditions})
    print(f"{len(drawn_for)} synthetic volumes: {target}")
    return target


# ----------------------------------------------------------------------------------------------------------------------
# Who draws


def load_fitting_synthesizer(experiment: Experiment, name: str, device: str,
                             montage: Sequence[int] | None = ()) -> Synthesizer:
    """The synthesizer trained for this fold; prints warnings about what it was not trained for.

    Args:
        montage: [rows, columns] of what it is to draw, () = single slices, None = what it was trained on.

    Raises:
        UserError: there is none, or it does not fit.
    """
    from nnunet_synth.synthesizers.checkpoint import load_synthesizer
    model = load_synthesizer(experiment.synthesizer_folder(name), device)
    _warn_of_misfits(experiment, model.meta, "synthesizer", f"--synthesizer {name}",
                     model.meta.montage if montage is None else montage)
    return model


def load_fitting_mask_source(experiment: Experiment, model: Synthesizer, device: str) -> MaskSource:
    """The mask source of this fold whose masks the synthesizer draws from.

    Raises:
        UserError: the synthesizer draws from a scan only, or cannot label what it draws; there is no mask source, or it
            does not fit.
    """
    from nnunet_synth.mask_sources import load_mask_source
    from nnunet_synth.mask_sources.unsupervised import MASK_SETTINGS, DrawsFromMasks
    name = "v2um" if isinstance(model, DrawsFromMasks) else "v2m"
    if name == "v2m" and model.needs:
        raise UserError(f"synthesizer {model.name} needs the {', '.join(sorted(model.needs))} of a scan: it cannot "
                        "draw --from noise")
    if name == "v2um" and not model.has_label_head:
        raise UserError(f"synthesizer {model.name} was trained without a segmentation head, so nobody knows the labels "
                        "of what it draws --from noise: pretrain it with one")
    folder, option = experiment.synthesizer_folder(name), f"--mask-source {name}"
    if not folder.is_dir():
        raise UserError(f"no mask source in {folder}: train one with {_pretrain_command(experiment, option)}")
    masks = load_mask_source(folder, device)
    _warn_of_misfits(experiment, masks.meta, "mask source", option, model.meta.montage)
    for key in MASK_SETTINGS:
        of_masks, of_model = masks.meta.config.get(key), model.meta.config.get(key)
        if name == "v2um" and of_model is not None and of_masks != of_model:
            raise UserError(f"mask source v2um was trained with {key} {of_masks:g}, synthesizer {model.name} with "
                            f"{of_model:g}: train one of them again with --option {key}=…")
    return masks


def _warn_of_misfits(experiment: Experiment, meta: SynthMeta, kind: str, option: str, montage: Sequence[int]) -> None:
    from nnunet_synth.synthesizers.checkpoint import check_synthesizer_fits
    for warning in check_synthesizer_fits(
            meta, semantic=experiment.semantic, channel_names=experiment.channel_names,
            plans_sha256=experiment.plans_sha256, val_ids=experiment.val_ids, patch_size=meta.patch_size,
            spacing=experiment.configuration_manager.spacing, montage=montage, kind=kind,
            pretrain_command=_pretrain_command(experiment, option)):
        print(f"warning: {warning}")


def _pretrain_command(experiment: Experiment, option: str) -> str:
    return (f"nnunet_synth pretrain {experiment.dataset_name[7:10]} {experiment.configuration} {experiment.fold} "
            f"{option}")


def _check_montage(meta: SynthMeta, wanted: Sequence[int]) -> None:
    if wanted and list(wanted) != list(meta.montage):
        trained = f"montages of {meta.montage[0]}x{meta.montage[1]}" if meta.montage else "single slices"
        raise UserError(f"synthesizer {meta.synthesizer} was trained on {trained}: pretrain it with --montage "
                        f"{wanted[0]}x{wanted[1]} to draw such montages")


# ----------------------------------------------------------------------------------------------------------------------
# What to draw for


def label_conditions(slices: FoldSlices | MontageSlices, synthesizer: Synthesizer, seed: int) -> Iterator[Slices]:
    """Batches of labelled training slices, moved and turned at random; without end."""
    import numpy as np
    rng = np.random.default_rng([seed, 1])
    while True:
        yield slices.sample(BATCH_SIZE, tuple(synthesizer.meta.patch_size), rng)


def pool_conditions(experiment: Experiment, slices: FoldSlices | MontageSlices, synthesizer: Synthesizer,
                    seed: int) -> Iterator[Slices]:
    """Batches of unlabelled slices with lesions transferred from labelled ones; without end.

    Raises:
        UserError: there is no unlabelled case, or none of them (or of the labelled ones) has a layout; the synthesizer
            draws montages.
    """
    import numpy as np

    from nnunet_synth.data.layouts import CLUSTER_FACTOR
    from nnunet_synth.data.slice_arrays import random_crop
    from nnunet_synth.data.slices import to_slices

    if synthesizer.meta.montage:
        raise UserError(f"synthesizer {synthesizer.name} was trained on montages, and --from pool draws single slices: "
                        "use --from labels or --from noise")
    unlabelled = slices.unlabelled()
    if unlabelled is None:
        raise UserError(f"{experiment.dataset_name} has no preprocessed unlabelled cases: put images into imagesUl and "
                        "run nnunet_synth preprocess, or use --from labels")
    origins = [(cases, (case_id, z)) for cases, (case_id, z) in unlabelled.origins
               if (cases.open(case_id)[2][z] % CLUSTER_FACTOR > 0).any()]
    donors = [origin for origin in slices.target_origins if (slices.cases.read(origin).layout > 0).any()]
    if not origins or not donors:
        which = "unlabelled" if not origins else "labelled"
        raise UserError(f"no {which} slice of {experiment.dataset_name} has a layout, so nobody knows where lesions "
                        "may lie: make layouts with nnunet_synth layouts, or use --from labels")

    def endless() -> Iterator[Slices]:
        rng = np.random.default_rng([seed, 2])
        while True:
            chosen = [origins[number] for number in rng.integers(len(origins), size=BATCH_SIZE)]
            parts = [_with_lesions(cases.read(origin), slices, donors, rng) for cases, origin in chosen]
            crops = [random_crop(part, tuple(synthesizer.meta.patch_size), _somewhere_in(part.layout, rng), rng)
                     for part in parts]
            yield to_slices(crops, [origin for _, origin in chosen])

    return endless()


def _with_lesions(part: SliceArrays, slices: FoldSlices, donors: list[tuple[str, int]],
                  rng: np.random.Generator) -> SliceArrays:
    from dataclasses import replace

    from nnunet_synth.data.lesion_transfer import transfer_lesions
    for _ in range(MAX_TRIES):
        donor = slices.cases.read(donors[rng.integers(len(donors))])
        label = transfer_lesions(donor.label, donor.layout, part.layout)
        if label.any():
            break
    return replace(part, label=label)


def _somewhere_in(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    import numpy as np
    return divmod(int(rng.choice(np.flatnonzero(mask))), mask.shape[1])


def mask_conditions(masks: MaskSource, num_channels: int, seed: int) -> Iterator[Slices]:
    """Batches of label and layout maps from noise, without images; without end."""
    for drawn in masks.endless(seed, BATCH_SIZE):
        label, layout = (part.cpu() for part in masks.maps(drawn))
        yield _without_scan(label, layout, label.new_zeros((len(label), num_channels, *label.shape[1:])).float())


def _without_scan(label: Tensor, layout: Tensor, image: Tensor) -> Slices:
    import torch

    from nnunet_synth.synthesizers.base import Slices
    return Slices(image=image, label=label, layout=layout, valid=torch.ones_like(label, dtype=torch.bool),
                  origin=[("noise", 0)] * len(label))


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def draw(synthesizer: Synthesizer, conditions: Iterator[Slices], number: int | None, seed: int,
         has_scans: bool = True) -> Iterator[tuple[Slices, np.ndarray]]:
    """Pairs of one slice ([1, …], with the label that describes the image) and its image [C, H, W].

    Args:
        number: of pairs; None = without end.
        has_scans: whether the images of the conditions are scans, which the synthesizer may look at.

    Raises:
        UserError: many batches in a row held nothing that can be drawn.
    """
    from dataclasses import replace

    import torch

    device = next(synthesizer.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    done = failures = 0
    for part in conditions:
        request = part.to(device).request(generator)
        synthesizer.begin_step(generator)
        result = synthesizer.synthesize(request if has_scans else replace(request, image=None))
        failures = 0 if bool(result.ok.any()) else failures + 1
        if failures == MAX_TRIES:
            raise UserError(f"synthesizer {synthesizer.name} has no style for the classes of these slices: it was "
                            "trained on too few cases, or use --from labels")
        for index in torch.nonzero(result.ok)[:, 0].tolist():
            if done == number:
                return
            done += 1
            yield replace(_one(part, index), label=result.label[index:index + 1].cpu()), \
                result.image[index].cpu().numpy()


def draw_volumes(synthesizer: Synthesizer, conditions: Iterable[LabelVolume],
                 seed: int) -> Iterator[tuple[LabelVolume, int, np.ndarray]]:
    """(condition, number of the variant, [C, D, H, W] image) of each condition and variant that can be drawn. One
    volume has one style throughout."""
    import torch
    device = next(synthesizer.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for volume in conditions:
        for variant in synthesizer.variants:
            synthesizer.variant = variant
            synthesizer.begin_step(generator)
            result = synthesizer.synthesize(volume.request(device, generator))
            if bool(result.ok.all()):
                yield volume, variant, result.image[0].cpu().numpy()
            else:
                print(f"left out: {volume.case_id} holds classes that network {variant + 1} of "
                      f"{synthesizer.name} has not seen")
    synthesizer.variant = None


def draw_from_noise(synthesizer: Synthesizer, masks: MaskSource, seed: int) -> Iterator[tuple[Slices, np.ndarray]]:
    """As `draw`, for masks from noise; without end.

    Of an unsupervised mask the slice holds the label that the synthesizer's segmentation head sees, no layout, and the
    mask itself as image.
    """
    if masks.name == "v2m":
        conditions = mask_conditions(masks, len(synthesizer.meta.channel_names), seed)
        yield from draw(synthesizer, conditions, None, seed, has_scans=False)
        return
    import torch
    import torch.nn.functional as F

    from nnunet_synth.superpixels import WHITE
    height, width = masks.meta.patch_size
    padding = (0, -width % synthesizer.divisor, 0, -height % synthesizer.divisor)
    generator = torch.Generator(masks.progress.device).manual_seed(seed)
    for drawn in masks.endless(seed, BATCH_SIZE):
        mask = masks.unsupervised(drawn)
        images, label = (one[..., :height, :width] for one in synthesizer.from_masks(F.pad(mask, padding), generator))
        shown = synthesizer.from_unit(mask / WHITE * 2 - 1).cpu()
        part = _without_scan(label.cpu(), torch.zeros_like(label).cpu(), shown)
        for index, image in enumerate(images.cpu().numpy()):
            yield _one(part, index), image


def cut(drawn: Iterator[tuple[Slices, np.ndarray]], montage: Sequence[int]) -> Iterator[tuple[Slices, np.ndarray]]:
    """The slices of drawn montages, one after another."""
    from dataclasses import replace

    import torch

    from nnunet_synth.data.montages import cut_apart
    for part, image in drawn:
        parts, images = cut_apart(part, *montage), cut_apart(replace(part, image=torch.from_numpy(image)[None]),
                                                             *montage).image
        for index, piece in enumerate(images.numpy()):
            yield _one(parts, index), piece


def _one(part: Slices, index: int) -> Slices:
    from dataclasses import replace
    one = slice(index, index + 1)
    return replace(part, image=part.image[one], label=part.label[one], layout=part.layout[one], valid=part.valid[one],
                   cluster=None if part.cluster is None else part.cluster[one], origin=part.origin[one])


# ----------------------------------------------------------------------------------------------------------------------
# Files


def _target(output: str | Path | None, as_dataset: int | None, name: str) -> Path:
    from nnunet_synth.data.nnunet_folders import environment_folder
    if as_dataset is None:
        if output is None:
            raise UserError("give --output FOLDER, or --as-dataset ID")
        if Path(output).exists():
            raise UserError(f"{output} exists: choose another --output, or remove it")
        return Path(output)
    if not name.isidentifier():
        raise UserError(f"--name {name!r}: use letters, digits and underscores")
    if not 1 <= as_dataset <= 999:
        raise UserError(f"--as-dataset {as_dataset}: dataset ids are 1 to 999")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        taken = sorted(environment_folder(variable).glob(f"Dataset{as_dataset:03d}_*"))
        if taken:
            raise UserError(f"dataset id {as_dataset} is taken by {taken[0]}: choose another --as-dataset")
    return environment_folder("nnUNet_raw") / f"Dataset{as_dataset:03d}_{name}"


def _volume_row(synthesizer: Synthesizer, volume: LabelVolume, image: np.ndarray) -> tuple[np.ndarray, ...]:
    """The slice with the most label."""
    from nnunet_synth.synthesizers.base import Slices
    index = int((volume.label[0] > 0).flatten(1).sum(1).argmax())
    part = Slices(volume.label.new_zeros(1), volume.label[:, index], volume.layout[:, index], volume.valid[:, index],
                  [(volume.case_id, index)])
    return _gallery_row(synthesizer, part, image[:, index])


def _gallery_row(synthesizer: Synthesizer, part: Slices, image: np.ndarray,
                 shows_mask: bool = False) -> tuple[np.ndarray, ...]:
    """Label over the image, and the image; before them the slice's own image where that is the mask."""
    import torch

    from nnunet_synth.synthesizers.gallery import overlay, to_gray

    def gray(one: np.ndarray) -> np.ndarray:
        in_range = synthesizer.to_unit(torch.from_numpy(one)[None]).where(part.valid[:, None], -1)
        return to_gray(in_range[0].numpy())

    classes = synthesizer.meta.semantic.combine(part.label, part.layout)[0].numpy()
    return (*((gray(part.image[0].numpy()),) if shows_mask else ()), overlay(gray(image), classes), gray(image))
