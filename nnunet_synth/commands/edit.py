"""Put lesions into a scan, change them or take them out, and draw image and annotation anew.

An edit is a shape and a mean intensity (HU in CT): it is painted into the unsupervised mask of the slice, and the
synthesizer (UM2I) draws the slice, whole, from the edited mask. --circle X Y Z RADIUS HU counts voxels from 0 as the
image's file does, the radius is in mm (pixels in pictures); the word healthy instead of HU takes a lesion out. --mask
FILE --hu HU does the same for any shape, and --edits FILE for a list of both:
[{"circle": [120, 88, 12], "radius": 9, "hu": -600, "label": "infection"}, {"mask": "m.nii.gz", "hu": "healthy"}]

`label` matters to --label-source painted: the head says itself which label it sees.

FOLDER gets the image with the drawn slices in it (intensities are those of the raw image again, within the range that
nnU-Net clips to), its annotation, and before_after.png. All other slices stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.argument_types import whole
from nnunet_synth.bounds import SEED
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from nnunet_synth.data.experiment import Experiment
    from nnunet_synth.editing.lesion_edits import LesionEdit
    from nnunet_synth.editing.opened_image import OpenedImage
    from nnunet_synth.editing.resynthesis import EditedSlice
    from nnunet_synth.synthesizers.base import Synthesizer

EXAMPLE = "nnunet_synth edit 501 2d 0 case_003 --circle 120 88 12 9 -600 --output edited"

LABEL_SOURCES = ("head", "painted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("configuration", metavar="CONFIG", help="a 2d configuration of the plans")
    parser.add_argument("fold", metavar="FOLD", help="fold that the synthesizer was trained on")
    parser.add_argument("image", metavar="IMAGE", help="a case of the dataset, or a file")
    parser.add_argument("--circle", nargs=5, action="append", default=[], metavar=("X", "Y", "Z", "RADIUS", "HU"),
                        help="a disc in one slice; may be given several times")
    parser.add_argument("--mask", metavar="FILE", help="a label map of the image's grid: all that is not 0")
    parser.add_argument("--hu", help="mean intensity inside --mask, or healthy")
    parser.add_argument("--edits", metavar="FILE", help="a JSON list of edits")
    parser.add_argument("--output", metavar="FOLDER",
                        help="a new folder (default: IMAGE_edited, where the command runs)")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--synthesizer", default="um2i", help="registered name (default: %(default)s)")
    parser.add_argument("--label-source", choices=LABEL_SOURCES, default="head",
                        help="annotation of the drawn slices: what the synthesizer's segmentation head sees, or what "
                             "was painted over the annotation that is there (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--seed", type=whole(SEED), default=0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from nnunet_synth.editing.lesion_edits import circle_edit, mask_edit, read_edits
    if (args.mask is None) != (args.hu is None):
        raise UserError("--mask FILE and --hu HU belong together")
    edits = [circle_edit(words) for words in args.circle]
    if args.mask is not None:
        edits.append(mask_edit(args.mask, args.hu))
    if args.edits is not None:
        edits += read_edits(args.edits)
    edit(args.dataset, args.configuration, args.fold, args.image, edits, args.output, plans=args.plans,
         synthesizer=args.synthesizer, label_source=args.label_source, device=args.device, seed=args.seed)


def edit(dataset: str | int, configuration: str, fold: int | str, image: str | Path, edits: Sequence[LesionEdit],
         output: str | Path | None = None, *, plans: str = "nnUNetPlans", synthesizer: str = "um2i",
         label_source: str = "head", device: str | None = None, seed: int = 0) -> list[EditedSlice]:
    """Draw an image anew with its lesions edited; returns the drawn slices. FOLDER (None = `<image>_edited` in the
    working folder) appears complete or not at all.

    Raises:
        UserError: no edits, an edit outside the image or the body, no fitting synthesizer, or FOLDER exists.
    """
    import numpy as np
    import torch

    from nnunet_synth.atomic import atomic_folder
    from nnunet_synth.commands.pretrain import find_device
    from nnunet_synth.data.experiment import load_experiment
    from nnunet_synth.editing.opened_image import OpenedImage
    from nnunet_synth.editing.resynthesis import draw_edits
    from nnunet_synth.synthesizers.gallery import write_gallery

    if not edits:
        raise UserError("nothing to edit: give --circle X Y Z RADIUS HU, --mask FILE --hu HU or --edits FILE")
    used_device = find_device(device)
    experiment = load_experiment(dataset, configuration, fold, plans)
    file, annotation = find_image(experiment, image)
    ending = experiment.dataset_json["file_ending"]
    output = Path(output or f"{file.name.removesuffix(ending).removesuffix('_0000')}_edited")
    if output.exists():
        raise UserError(f"--output {output} exists: name a new folder")
    labels = [label_of(experiment, one.label) for one in edits]
    model = load_model(experiment, synthesizer, label_source, used_device)
    regions = mark_regions(experiment, file, edits)
    opened = OpenedImage.open(experiment, [file], regions)
    warn_of_clipping(model, opened, edits)
    slices = draw_edits(model, opened, edits, torch.Generator(used_device).manual_seed(seed))
    before = read_annotation(experiment, annotation, opened.raw.shape)
    if label_source == "painted":
        after = paint_annotation(before, regions, labels, edits)
    else:
        after = opened.replace_labels(before, {part.number: part.seen for part in slices})
    painted = np.array([0, *(0 if one.intensity is None else label for one, label in zip(edits, labels, strict=True))])
    with atomic_folder(output) as folder:
        write_image(file, opened.replace_slices({part.number: part.drawn for part in slices}), folder / file.name)
        experiment.plans_manager.image_reader_writer_class().write_seg(
            after, str(folder / f"{file.name.removesuffix(ending)}_label{ending}"), opened.properties)
        write_gallery([picture_row(model, opened, part, part.seen if label_source == "head" else painted[part.regions])
                       for part in slices],
                      ("before", "its mask", "edited mask", "after", "annotation"), folder / "before_after.png")
    print(f"{len(edits)} edit(s) in {len(slices)} slice(s): {output}")
    return slices


# ----------------------------------------------------------------------------------------------------------------------
# What is edited


def find_image(experiment: Experiment, image: str | Path) -> tuple[Path, Path | None]:
    """The file of a case or of a path, and its annotation where the dataset has one.

    Raises:
        UserError: neither a case nor a file.
    """
    from nnunet_synth.data.raw_images import list_cases

    ending = experiment.dataset_json["file_ending"]
    for kind in ("Tr", "Ts", "Ul"):
        files = list_cases(experiment.raw_folder / f"images{kind}", ending).get(str(image))
        if files is not None:
            annotation = experiment.raw_folder / f"labels{kind}" / f"{image}{ending}"
            return files[0], annotation if annotation.is_file() else None
    if Path(image).is_file():
        return Path(image), None
    raise UserError(f"{image} is neither a case of {experiment.dataset_name} (imagesTr, imagesTs, imagesUl) nor a file")


def label_of(experiment: Experiment, name: str | None) -> int:
    """The value of a label. Raises UserError when the dataset has no such label."""
    labels = experiment.foreground_labels
    if name is None:
        return min(labels.values())
    if name not in labels:
        raise UserError(f"unknown label {name!r} in an edit; known: {', '.join(labels)}")
    return labels[name]


def mark_regions(experiment: Experiment, file: Path, edits: Sequence[LesionEdit]) -> np.ndarray:
    """[z, y, x] int16 of the raw grid: number of the edit from 1 on, 0 = none; later edits override earlier ones.

    Raises:
        UserError: an edit outside the image or (CT) the body, or a mask of another grid.
    """
    import numpy as np

    from nnunet_synth.data.raw_images import read_image, read_segmentation
    from nnunet_synth.editing.lesion_edits import Circle
    from nnunet_synth.editing.resynthesis import cut_to_body

    reader = experiment.plans_manager.image_reader_writer_class()
    image, properties = read_image([file], reader)
    slice_axis = experiment.plans_manager.transpose_forward[0]
    is_ct = experiment.configuration_manager.normalization_schemes[0] == "CTNormalization"
    regions = np.zeros(image.shape[1:], np.int16)
    for number, one in enumerate(edits, start=1):
        if isinstance(one.shape, Circle):
            region = one.shape.draw(regions.shape, properties["spacing"], slice_axis)
        else:
            region = read_segmentation(one.shape.path, reader)[0][0] > 0
            if region.shape != regions.shape:
                raise UserError(f"{one.shape} has shape {region.shape}, the image {regions.shape}: give a mask of the "
                                "image's own voxel grid")
            if not region.any():
                raise UserError(f"{one.shape} is empty: nothing to edit")
        regions[cut_to_body(image[0], region, one, slice_axis) if is_ct else region] = number
    return regions


def load_model(experiment: Experiment, name: str, label_source: str, device: str) -> Synthesizer:
    """The synthesizer of this fold. Raises UserError where it cannot draw from masks, or not label what it draws."""
    from nnunet_synth.commands.sample import load_fitting_synthesizer
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.editing.resynthesis import DrawsEditedMasks

    model = load_fitting_synthesizer(experiment, name, device)
    if not isinstance(model, DrawsEditedMasks):
        raise UserError(f"synthesizer {name} does not draw from unsupervised masks: pretrain um2i for edits")
    if label_source == "head" and not model.has_label_head:
        raise UserError(f"synthesizer {name} has no segmentation head: use --label-source painted")
    if "cluster" in model.needs:
        raise UserError(f"synthesizer {name} draws from cached superpixels or clusters, which an edited image has none "
                        "of: pretrain it with --option superpixels=slic (um2i) or mask=slic (cs2)")
    if model.takes_style:
        model.fit_pool(FoldSlices(experiment))
    return model


def warn_of_clipping(model: Synthesizer, opened: OpenedImage, edits: Sequence[LesionEdit]) -> None:
    """Where an intensity lies outside the range that the synthesizer draws: it is drawn as the nearest in it."""
    import numpy as np
    low, high = opened.intensities.to_raw(np.array(model.meta.intensity_range[0]))
    for one in edits:
        if one.intensity is not None and not low - 0.5 <= one.intensity <= high + 0.5:
            print(f"warning: {one.shape}: {one.intensity:g} lies outside the {low:.0f} to {high:.0f} that the "
                  f"synthesizer draws, and is drawn as {np.clip(one.intensity, low, high):.0f}", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------------------
# What comes of it


def read_annotation(experiment: Experiment, file: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    """[z, y, x] uint8 labels of the raw image; zeros where it has none."""
    import numpy as np

    from nnunet_synth.data.raw_images import read_segmentation
    if file is None:
        return np.zeros(shape, np.uint8)
    return read_segmentation(file, experiment.plans_manager.image_reader_writer_class())[0][0].astype(np.uint8)


def paint_annotation(before: np.ndarray, regions: np.ndarray, labels: Sequence[int],
                     edits: Sequence[LesionEdit]) -> np.ndarray:
    """The annotation with every edit painted over it; a lesion taken out is background."""
    after = before.copy()
    for number, (one, label) in enumerate(zip(edits, labels, strict=True), start=1):
        after[regions == number] = 0 if one.intensity is None else label
    return after


def write_image(original: Path, image: np.ndarray, target: Path) -> None:
    """[z, y, x] in the file format, voxel type and geometry of the original.

    Raises:
        UserError: the dataset's reader turns the image's axes, which the original's geometry would not describe.
    """
    import numpy as np
    import SimpleITK

    source = SimpleITK.ReadImage(str(original))
    voxels = SimpleITK.GetArrayFromImage(source)
    if voxels.size != image.size or (voxels.shape != image.shape and voxels.ndim == image.ndim):
        raise UserError(f"{original}: the dataset's reader changes the axes of its images; edit needs SimpleITKIO, "
                        "NibabelIO or NaturalImage2DIO")
    if np.issubdtype(voxels.dtype, np.integer):
        limits = np.iinfo(voxels.dtype)
        image = np.clip(np.rint(image), limits.min, limits.max)
    result = SimpleITK.GetImageFromArray(image.reshape(voxels.shape).astype(voxels.dtype))
    result.CopyInformation(source)
    SimpleITK.WriteImage(result, str(target))


def picture_row(model: Synthesizer, opened: OpenedImage, part: EditedSlice,
                label: np.ndarray) -> tuple[np.ndarray, ...]:
    """Before, its mask, the edited mask, after, and this with `label` [H, W] over it: uint8 [H, W] or [H, W, 3]."""
    import numpy as np
    import torch

    from nnunet_synth.synthesizers.gallery import overlay, to_gray

    def gray(image: np.ndarray) -> np.ndarray:
        return to_gray(model.to_unit(torch.from_numpy(image)[None, None].cpu())[0].numpy())

    def mask(values: np.ndarray) -> np.ndarray:
        return to_gray(values[None] / 127.5 - 1)

    return (gray(part.image), mask(part.mask), mask(part.edited_mask), gray(part.drawn),
            overlay(gray(part.drawn), np.maximum(label, 0)))
