"""Draw images with a trained synthesizer: to look at them, or as a normal nnU-Net raw dataset.

--from labels: for the labels and layouts of labelled training slices, moved and turned at random. --from pool: for the
anatomy of unlabelled slices, with lesion shapes taken from labelled training slices. Intensities are those of the raw
images again; PNG datasets get pictures, all others volumes of one slice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from nnunet_synth.data.experiment import Experiment
    from nnunet_synth.data.slice_arrays import SliceArrays
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.synthesizers.base import Slices, Synthesizer

HELP = "draw images with a trained synthesizer, to look at or as a dataset"
EXAMPLE = "nnunet_synth sample 501 2d 0 --synthesizer sean --from labels -n 200 --as-dataset 601 --name Synthetic"

SOURCES = ("labels", "pool")
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
    parser.add_argument("-n", type=int, default=16, dest="number", metavar="N",
                        help="number of images (default: %(default)s)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", metavar="FOLDER", help="a new folder for the images, labels and a gallery")
    target.add_argument("--as-dataset", type=int, metavar="ID", help="write nnUNet_raw/DatasetID_NAME")
    parser.add_argument("--name", default="Synthetic", help="name of that dataset (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    sample(**{name: value for name, value in vars(args).items() if name not in ("verb", "run")})


def sample(dataset: str | int, configuration: str, fold: int | str, *, synthesizer: str = "sean",
           source: str = "labels", number: int = 16, output: str | Path | None = None, as_dataset: int | None = None,
           name: str = "Synthetic", device: str | None = None, seed: int = 0, plans: str = "nnUNetPlans") -> Path:
    """Draw `number` images; returns the folder they are in. It appears complete or not at all.

    Raises:
        UserError: no synthesizer or an unfitting one, no layouts for `pool`, or the target exists.
    """
    import torch

    from nnunet_synth.atomic import atomic_folder
    from nnunet_synth.commands.pretrain import find_device
    from nnunet_synth.data.experiment import load_experiment
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.dataset_conversion.synthetic import SyntheticWriter
    from nnunet_synth.progress import progress
    from nnunet_synth.synthesizers.gallery import write_gallery

    if number < 1:
        raise UserError(f"-n {number}: must be at least 1")
    used_device = find_device(device)
    experiment = load_experiment(dataset, configuration, fold, plans)
    target = _target(output, as_dataset, name)
    model = load_fitting_synthesizer(experiment, synthesizer, used_device)
    slices = FoldSlices(experiment)
    model.fit_pool(slices)
    conditions = label_conditions(slices, model, seed) if source == "labels" \
        else pool_conditions(experiment, slices, model, seed)

    rows: list[tuple[np.ndarray, ...]] = []
    with torch.random.fork_rng([]), atomic_folder(target) as folder:
        writer = SyntheticWriter(experiment, model.meta, folder)
        for part, image in progress(draw(model, conditions, number, seed), f"drawing with {synthesizer}", number):
            writer.write(part, image)
            if len(rows) < MAX_GALLERY_ROWS:
                rows.append(_gallery_row(model, part, image))
        write_gallery(rows, ("label", "synthetic"), folder / "gallery.png")
        writer.finish(target.name, {"from": source, "seed": seed})
    print(f"{number} synthetic images: {target}")
    return target


def load_fitting_synthesizer(experiment: Experiment, name: str, device: str) -> Synthesizer:
    """The synthesizer trained for this fold; prints warnings about what it was not trained for.

    Raises:
        UserError: there is none, or it does not fit.
    """
    from nnunet_synth.synthesizers.checkpoint import check_synthesizer_fits, load_synthesizer
    model = load_synthesizer(experiment.synthesizer_folder(name), device)
    command = f"{experiment.dataset_name[7:10]} {experiment.configuration} {experiment.fold} --synthesizer {name}"
    for warning in check_synthesizer_fits(
            model.meta, semantic=experiment.semantic, channel_names=experiment.channel_names,
            plans_sha256=experiment.plans_sha256, val_ids=experiment.val_ids, patch_size=model.meta.patch_size,
            spacing=experiment.configuration_manager.spacing, pretrain_command=f"nnunet_synth pretrain {command}"):
        print(f"warning: {warning}")
    return model


# ----------------------------------------------------------------------------------------------------------------------
# What to draw for


def label_conditions(slices: FoldSlices, synthesizer: Synthesizer, seed: int) -> Iterator[Slices]:
    """Batches of labelled training slices, moved and turned at random; without end."""
    import numpy as np
    rng = np.random.default_rng([seed, 1])
    while True:
        yield slices.sample(BATCH_SIZE, tuple(synthesizer.meta.patch_size), rng)


def pool_conditions(experiment: Experiment, slices: FoldSlices, synthesizer: Synthesizer,
                    seed: int) -> Iterator[Slices]:
    """Batches of unlabelled slices with lesions transferred from labelled ones; without end.

    Raises:
        UserError: there is no unlabelled case, or none of them (or of the labelled ones) has a layout.
    """
    import numpy as np

    from nnunet_synth.data.layouts import CLUSTER_FACTOR
    from nnunet_synth.data.slice_arrays import random_crop
    from nnunet_synth.data.slices import to_slices

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


def draw(synthesizer: Synthesizer, conditions: Iterator[Slices], number: int,
         seed: int) -> Iterator[tuple[Slices, np.ndarray]]:
    """`number` pairs of one slice ([1, …], with the label that describes the image) and its image [C, H, W].

    Raises:
        UserError: many batches in a row held nothing that can be drawn.
    """
    from dataclasses import replace

    import torch

    device = next(synthesizer.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    done = failures = 0
    for part in conditions:
        here = part.to(device)
        synthesizer.begin_step(generator)
        result = synthesizer.synthesize(here.request(generator))
        failures = 0 if bool(result.ok.any()) else failures + 1
        if failures == MAX_TRIES:
            raise UserError(f"synthesizer {synthesizer.name} has no style for the classes of these slices: it was "
                            "trained on too few cases, or use --from labels")
        for index in torch.nonzero(result.ok)[:, 0].tolist():
            if done == number:
                return
            done += 1
            one = replace(part, image=part.image[index:index + 1], label=result.label[index:index + 1].cpu(),
                          layout=part.layout[index:index + 1], valid=part.valid[index:index + 1],
                          origin=part.origin[index:index + 1])
            yield one, result.image[index].cpu().numpy()


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


def _gallery_row(synthesizer: Synthesizer, part: Slices, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from nnunet_synth.synthesizers.gallery import overlay, to_gray
    in_range = synthesizer.to_unit(torch.from_numpy(image)[None]).where(part.valid[:, None], -1)
    drawn = to_gray(in_range[0].numpy())
    classes = synthesizer.meta.semantic.combine(part.label, part.layout)[0].numpy()
    return overlay(drawn, classes), drawn
