"""COVID-SemiSeg: 8-bit pictures of COVID-19 CT slices, 50 labelled, 1,600 unlabelled, 48 to test on.

Where: https://github.com/DengPingFan/Inf-Net links the download. What is read of it takes 37 MB.
Licence: for non-commercial use, as the publisher states.
Cite: D.-P. Fan et al., Inf-Net, IEEE Transactions on Medical Imaging 39(8):2626-2637, 2020.

SOURCE is the release as one zip, a folder of its zips, or extracted (the folder `Dataset` or any above):

    Dataset/TrainingSet/LungInfection-Train/Doctor-label/{Imgs/*.jpg,GT/*.png}     50 slices, infection
    Dataset/TrainingSet/LungInfection-Train/Pseudo-label/Imgs/*.jpg                1,600 slices nobody labelled
    Dataset/TrainingSet/MultiClassInfection-Train/{Imgs/*.jpg,GT/*.png}            the same 50, two kinds of infection
    Dataset/TestingSet/LungInfection-Test/{Imgs/*.jpg,GT/*.png}                    48 slices, with or without GT
    Dataset/TestingSet/MultiClassInfection-Test/{Imgs/*.jpg,GT/*.png}

`Edge`, `Prior` and the authors' own pseudo-labels are not read. No spacing is known: it is set to 1, so distances are
in pixels.

One orientation. Rows run from the patient's right (top) to the left (bottom) in all parts: the dome of the liver is in
the upper lung, the descending aorta below the spine. Columns run from anterior to posterior (spine on the right) in the
labelled and test slices and in the unlabelled `radiopaedia` volumes, and the other way in the unlabelled `coronacases`
volumes. So those are mirrored left to right; turning them by 180 degrees would exchange the lungs. The choice is made
per volume from the picture (the vertebra is the brightest thing near the midline), not from its name. Labelled and test
slices stay as published, so predictions can be scored against the publisher's masks.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription, Role, reject
from nnunet_synth.dataset_conversion.sources import SourceFile, list_files
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunet_synth.dataset_conversion.writer import CaseReport

HELP = "COVID-SemiSeg (Inf-Net): 50 labelled and 1,600 unlabelled CT slices as 8-bit pictures"
EXAMPLE = "nnunet_synth convert covid-semiseg ~/downloads/COVID-SemiSeg/Dataset -d 520 --task infection"

Task = Literal["infection", "multiclass"]
TASKS: dict[str, dict[str, int]] = {
    "infection": {"background": 0, "infection": 1},
    "multiclass": {"background": 0, "ground_glass": 1, "consolidation": 2},
}
COLOURS = {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2}        # of the multi-class masks

_UNLABELLED = "LungInfection-Train/Pseudo-label"
_LABELLED = {"infection": "LungInfection-Train/Doctor-label", "multiclass": "MultiClassInfection-Train"}
_TEST = {"infection": "LungInfection-Test", "multiclass": "MultiClassInfection-Test"}
_PARTS = {"LungInfection-Train", "MultiClassInfection-Train", *_TEST.values()}
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
_SLICES_PER_VOTE = 15


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        task: `infection`, or `multiclass` for ground glass and consolidation.
    """

    task: Task = "infection"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"covid-semiseg has no task {self.task!r}: choose one of {', '.join(TASKS)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=tuple(TASKS), default="infection",
                        help="infection (default), or multiclass: ground glass and consolidation")


def describe(options: Options) -> DatasetDescription:
    """What `dataset.json` says about it."""
    return DatasetDescription(
        name="COVIDSemiSeg",
        channel_names=("gray",),        # not CT: nnU-Net z-scores each slice, as its window is unknown
        labels=TASKS[options.task],
        file_ending=".png",
        reader_writer="NaturalImage2DIO",
        num_dimensions=2,
        licence="for non-commercial use (as the publisher states)",
        citation="D.-P. Fan et al., Inf-Net: Automatic COVID-19 Lung Infection Segmentation from CT Images, "
                 "IEEE Transactions on Medical Imaging 39(8):2626-2637, 2020, doi:10.1109/TMI.2020.2996645",
        source="https://github.com/DengPingFan/Inf-Net",
        description=f"COVID-19 CT slices as 8-bit pictures, task {options.task}",
        orientation="LP",
        notes=("no spacing is known: it is set to 1, so distances (NSD, HD95) are in pixels, not in mm",
               "8-bit gray values of unknown windows, not HU: the channel is called gray and each slice is z-scored",
               "orientation of the arrays: rows run to the patient's left, columns to posterior"),
    )


def find_cases(source: str | Path, options: Options) -> Iterator[Case]:
    """Yield the labelled, the test and the unlabelled cases; ids are the publisher's file names without ending.

    Raises:
        UserError: `source` is not this dataset.
    """
    folders = _pictures_by_folder(source)
    labelled = _LABELLED[options.task]
    if not folders.get(f"{labelled}/Imgs"):
        raise UserError(f"{labelled}/Imgs holds no images in {source}: is that the COVID-SemiSeg release?")
    if f"{labelled}/GT" not in folders:
        raise UserError(f"{labelled}/GT is not in {source}: the masks of the labelled slices are missing")
    yield from _part(folders[f"{labelled}/Imgs"], "labelled", folders[f"{labelled}/GT"], options.task)

    # Without multi-class test masks the images are the same, but the masks are of another task.
    test = next((part for part in (_TEST[options.task], _TEST["infection"]) if f"{part}/Imgs" in folders), None)
    if test is not None:
        masks = folders.get(f"{test}/GT") if test == _TEST[options.task] else None
        yield from _part(folders[f"{test}/Imgs"], "test", masks, options.task)

    volumes: dict[str, list[SourceFile]] = {}
    for image in folders.get(f"{_UNLABELLED}/Imgs", ()):
        volumes.setdefault(volume_of(image.path.stem), []).append(image)
    for volume, images in volumes.items():
        yield from _part(images, "unlabelled", None, options.task, group=volume)


def make_splits(cases: Sequence[CaseReport], options: Options) -> list[dict[str, Any]]:
    """nnU-Net's own folds: of which volume or patient the labelled slices are was not published."""
    return []


def volume_of(case_id: str) -> str:
    """The volume an unlabelled slice was cut from: `Data-1_coronacases_org_001_31` → `…_001`."""
    return re.sub(r"_\d+$", "", case_id)


def _pictures_by_folder(source: str | Path) -> dict[str, list[SourceFile]]:
    """Folder of the release, as LungInfection-Train/…/Imgs → its pictures in the order of their names."""
    folders: dict[str, dict[str, SourceFile]] = {}
    for file in list_files(source):
        *above, name = file.path.parts
        starts = [index for index, part in enumerate(above) if part in _PARTS]
        if starts and file.path.suffix.lower() in _IMAGE_ENDINGS:
            folder = "/".join(above[starts[-1]:])
            first = folders.setdefault(folder, {}).setdefault(name, file)
            if first is not file:
                raise UserError(f"{source} holds {folder}/{name} twice, {first} and {file}: give one release")
    if not any(folder.split("/")[0].endswith("-Train") for folder in folders):
        raise UserError(f"{source} holds no LungInfection-Train: it is not the COVID-SemiSeg release")
    return {folder: [files[name] for name in sorted(files)] for folder, files in folders.items()}


def _part(images: list[SourceFile], role: Role, masks: list[SourceFile] | None, task: Task,
          group: str = "") -> Iterator[Case]:
    """The cases of one folder or volume, which all show the patient the same way.

    Args:
        masks: their masks, called as the images are; None where nobody labelled them.
    """
    mask_of = {mask.path.stem: mask for mask in masks or ()}
    mirrored, share = _spine_is_on_the_left(images)
    for image in images:
        case_id = image.path.stem
        mask = mask_of.get(case_id)
        read = partial(read_case, image, mask, task, mirrored)
        if masks and not mask:
            read = partial(reject, f"{case_id}.png is not in the folder GT: the mask of {image.path.name} is missing")
        yield Case(id=case_id, role=role, sources=(image, mask) if mask else (image,), read=read, group=group,
                   metadata={"mirrored": mirrored, "orientation_vote": round(share, 2)})


# ----------------------------------------------------------------------------------------------------------------------
# One case


def read_case(image_file: SourceFile, mask_file: SourceFile | None, task: Task, mirrored: bool) -> CaseContent:
    """Read one slice [H, W] uint8 and its mask. Raises UserError with the reason why it cannot be used."""
    import SimpleITK
    repairs: list[str] = []
    pixels = _gray(_open(image_file), image_file, repairs)
    label = None
    if mask_file is not None:
        decode = _infection if task == "infection" else _multiclass
        label = decode(_open(mask_file), mask_file, repairs)
        if label.shape != pixels.shape:
            raise UserError(f"{mask_file} is {_size(label)}, its image {image_file.path.name} is {_size(pixels)}")
    if mirrored:
        pixels, label = pixels[:, ::-1], None if label is None else label[:, ::-1]
        repairs.append("mirrored left to right")
    to_image = SimpleITK.GetImageFromArray
    return CaseContent(images=(to_image(np.ascontiguousarray(pixels)),),
                       label=None if label is None else to_image(np.ascontiguousarray(label)), repairs=tuple(repairs))


def _open(file: SourceFile) -> np.ndarray:
    """The decoded picture [H, W] or [H, W, 3] uint8; a palette becomes its colours."""
    from PIL import Image
    content = file.read_bytes()
    if not content:
        raise UserError(f"{file} is empty (0 bytes): copy it again")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            if picture.mode not in ("1", "L", "P", "RGB", "RGBA", "LA"):
                raise UserError(f"{file} is a picture of mode {picture.mode}: expected 8 bits a channel")
            return np.asarray(picture if picture.mode in ("L", "RGB") else
                              picture.convert("L" if picture.mode == "1" else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{file} is truncated or corrupt: copy it again ({reason})") from error


def _gray(picture: np.ndarray, file: SourceFile, repairs: list[str]) -> np.ndarray:
    if picture.ndim == 2:
        return picture
    spread = int(np.ptp(picture.astype(np.int16), axis=2).max())
    if spread > 16:                                     # JPEG's chroma rounding stays far below
        raise UserError(f"{file} is a colour picture (channels differ by up to {spread}): expected a gray CT slice")
    repairs.append("RGB to gray")
    return np.rint(picture.mean(axis=2)).astype(np.uint8)


def _infection(picture: np.ndarray, file: SourceFile, repairs: list[str]) -> np.ndarray:
    """Binary mask {0, 255}; JPEG or resampling leaves values between, which are cut at 128."""
    gray = _gray(picture, file, repairs)
    num_odd = int(((gray != 0) & (gray != 255)).sum())
    if set(np.unique(gray)) == {0, 1}:                  # already label values
        return gray
    if num_odd:
        _check_share(num_odd, gray.size, file, "0 or 255")
        repairs.append(f"{num_odd} mask pixels neither 0 nor 255: cut at 128")
    return (gray >= 128).astype(np.uint8)


def _multiclass(picture: np.ndarray, file: SourceFile, repairs: list[str]) -> np.ndarray:
    """(0,0,0) → 0, (128,0,0) → 1, (0,128,0) → 2; slightly other colours go to the nearest of them."""
    if picture.ndim != 3:
        raise UserError(f"{file} is a gray mask: the multi-class masks are (128,0,0) and (0,128,0) on black")
    colours = np.array(list(COLOURS), dtype=np.int16)
    distance = np.abs(picture[:, :, None, :].astype(np.int16) - colours).max(axis=-1)        # [H, W, 3]
    num_odd = int((distance.min(axis=-1) > 0).sum())
    if num_odd:
        far = distance.min(axis=-1) >= 64
        if far.any():
            _check_share(int(far.sum()), far.size, file, "one of the colours (0,0,0), (128,0,0), (0,128,0)",
                         allowed=0.0, example=tuple(int(value) for value in picture[far][0]))
        _check_share(num_odd, far.size, file, "one of the colours (0,0,0), (128,0,0), (0,128,0)")
        repairs.append(f"{num_odd} mask pixels of another colour: set to the nearest")
    return np.array(list(COLOURS.values()), dtype=np.uint8)[distance.argmin(axis=-1)]


def _check_share(num_odd: int, num_pixels: int, file: SourceFile, expected: str, allowed: float = 0.05,
                 example: tuple[int, ...] | None = None) -> None:
    if num_odd > allowed * num_pixels:
        found = f", e.g. {example}" if example else ""
        raise UserError(f"{file} holds {num_odd} pixels that are not {expected}{found}: it is not a mask of this task")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]} pixels"


# ----------------------------------------------------------------------------------------------------------------------
# Which way the patient lies


def _spine_is_on_the_left(images: list[SourceFile]) -> tuple[bool, float]:
    """Majority over some slices of one volume, and the share of slices that agree."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(_SLICES_PER_VOTE, len(images))).astype(int))
    votes = []
    for index in chosen:
        try:
            votes.append(spine_side(_gray(_open(images[index]), images[index], [])) == "left")
        except UserError:
            continue                                    # rejected with its reason when it is converted
    share = float(np.mean(votes)) if votes else 0.0
    return share > 0.5, max(share, 1 - share)


def spine_side(pixels: np.ndarray) -> Literal["left", "right"]:
    """On which side of a slice [H, W], whose rows run across the patient, the spine lies.

    Bone is the brightest tissue at any window, and within the middle rows the vertebra outweighs the sternum.
    Measured on COVID-SemiSeg: right for 92 % of the labelled and 99 % of the unlabelled slices one by one, and for
    every volume by majority.
    """
    from scipy.ndimage import gaussian_filter
    height, width = pixels.shape
    middle = gaussian_filter(pixels.astype(np.float32), 2)[int(0.35 * height):int(0.65 * height) + 1]
    num_brightest = max(1, height * width // 500)       # about the area of a vertebral body's bright rim

    def brightness(half: np.ndarray) -> float:
        values = half.ravel()
        num = min(num_brightest, values.size)
        return float(np.partition(values, values.size - num)[values.size - num:].mean())

    return "left" if brightness(middle[:, :width // 2]) > brightness(middle[:, width // 2:]) else "right"
