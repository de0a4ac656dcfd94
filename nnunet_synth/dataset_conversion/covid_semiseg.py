"""COVID-SemiSeg: 8-bit pictures of COVID-19 CT slices, 50 labelled, 1,600 unlabelled, 48 or 50 to test on.

The tree of the public release (Inf-Net, Fan et al. 2020); `Dataset` or its parent may be given as SOURCE:

    Dataset/TrainingSet/LungInfection-Train/Doctor-label/{Imgs/*.jpg,GT/*.png}     50 slices, infection
    Dataset/TrainingSet/LungInfection-Train/Pseudo-label/Imgs/*.jpg                1,600 slices nobody labelled
    Dataset/TrainingSet/MultiClassInfection-Train/{Imgs/*.jpg,GT/*.png}            the same 50, two kinds of infection
    Dataset/TestingSet/LungInfection-Test/{Imgs/*.jpg,GT/*.png}                    with or without GT
    Dataset/TestingSet/MultiClassInfection-Test/{Imgs/*.jpg,GT/*.png}

`Edge`, `Prior` and the authors' own pseudo-labels are not read.

**One orientation.** Rows run from the patient's right (top) to the left (bottom) in all parts: the dome of the liver
is in the upper lung, the descending aorta below the spine. Columns run from anterior to posterior (spine on the right)
in the labelled and test slices and in the unlabelled `radiopaedia` volumes, and the other way in the unlabelled
`coronacases` volumes. So those are mirrored left to right; turning them by 180° would exchange the lungs. The choice
is made per volume from the picture (the vertebra is the brightest thing near the midline), not from its name.
Labelled and test slices stay as published, so predictions can be scored against the publisher's masks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from nnunet_synth.dataset_conversion.case import Case, CaseContent, DatasetDescription
from nnunet_synth.errors import UserError

Task = Literal["infection", "multiclass"]
TASKS: dict[str, dict[str, int]] = {
    "infection": {"background": 0, "infection": 1},
    "multiclass": {"background": 0, "ground_glass": 1, "consolidation": 2},
}
COLOURS = {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2}        # of the multi-class masks

_TRAIN = Path("TrainingSet")
_UNLABELLED = _TRAIN / "LungInfection-Train" / "Pseudo-label"
_LABELLED = {"infection": _TRAIN / "LungInfection-Train" / "Doctor-label",
             "multiclass": _TRAIN / "MultiClassInfection-Train"}
_TEST = {"infection": Path("TestingSet") / "LungInfection-Test",
         "multiclass": Path("TestingSet") / "MultiClassInfection-Test"}
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
_SLICES_PER_VOTE = 15


def describe(task: Task = "infection") -> DatasetDescription:
    """What `dataset.json` says about it."""
    return DatasetDescription(
        name="COVIDSemiSeg",
        channel_names=("gray",),        # not CT: nnU-Net z-scores each slice, as its window is unknown
        labels=TASKS[task],
        file_ending=".png",
        reader_writer="NaturalImage2DIO",
        num_dimensions=2,
        licence="for non-commercial use (as the publisher states)",
        citation="D.-P. Fan et al., Inf-Net: Automatic COVID-19 Lung Infection Segmentation from CT Images, "
                 "IEEE Transactions on Medical Imaging 39(8):2626-2637, 2020, doi:10.1109/TMI.2020.2996645",
        source="https://github.com/DengPingFan/Inf-Net",
        description=f"COVID-19 CT slices as 8-bit pictures, task {task}",
        orientation="LP",
        notes=("no spacing is known: it is set to 1, so distances (NSD, HD95) are in pixels, not in mm",
               "8-bit gray values of unknown windows, not HU: the channel is called gray and each slice is z-scored",
               "orientation of the arrays: rows run to the patient's left, columns to posterior"),
    )


def find_cases(source: str | Path, task: Task = "infection") -> Iterator[Case]:
    """Yield the labelled, the test and the unlabelled cases; ids are the publisher's file names without ending.

    Args:
        source: the folder `Dataset` of the release, or its parent.
        task: `infection`, or `multiclass` for ground glass and consolidation.

    Raises:
        UserError: `source` is not this dataset.
    """
    root = _find_root(Path(source))
    labelled = root / _LABELLED[task]
    if not _images(labelled / "Imgs"):
        raise UserError(f"{labelled / 'Imgs'} holds no images: is {source} the folder `Dataset` of COVID-SemiSeg?")
    if not (labelled / "GT").is_dir():
        raise UserError(f"{labelled / 'GT'} does not exist: the masks of the labelled slices are missing")
    yield from _part(_images(labelled / "Imgs"), "labelled", labelled / "GT", task)

    test = root / _TEST[task]
    if task == "multiclass" and not test.is_dir():
        test = root / _TEST["infection"]            # the images are the same, its masks are of another task
        yield from _part(_images(test / "Imgs"), "test", None, task)
    else:
        yield from _part(_images(test / "Imgs"), "test", test / "GT" if (test / "GT").is_dir() else None, task)

    volumes: dict[str, list[Path]] = {}
    for image in _images(root / _UNLABELLED / "Imgs"):
        volumes.setdefault(volume_of(image.stem), []).append(image)
    for volume, images in volumes.items():
        yield from _part(images, "unlabelled", None, task, group=volume)


def volume_of(case_id: str) -> str:
    """The volume an unlabelled slice was cut from: `Data-1_coronacases_org_001_31` → `…_001`."""
    return re.sub(r"_\d+$", "", case_id)


def _find_root(source: Path) -> Path:
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give the extracted COVID-SemiSeg release (its folder `Dataset`)")
    for root in (source, source / "Dataset"):
        if (root / _TRAIN).is_dir():
            return root
    raise UserError(f"{source} holds neither TrainingSet nor Dataset/TrainingSet: it is not the COVID-SemiSeg release")


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir()
                  if path.suffix.lower() in _IMAGE_ENDINGS and not path.name.startswith("."))


def _part(images: list[Path], role: str, masks: Path | None, task: Task, group: str = "") -> Iterator[Case]:
    """The cases of one folder or volume, which all show the patient the same way."""
    if not images:
        return
    mirrored, share = _spine_is_on_the_left(images)
    for image in images:
        mask = masks / f"{image.stem}.png" if masks else None
        yield Case(id=image.stem, role=role, sources=(image, mask) if mask else (image,),
                   read=partial(read_case, image, mask, task, mirrored), group=group,
                   metadata={"mirrored": mirrored, "orientation_vote": round(share, 2)})


# ----------------------------------------------------------------------------------------------------------------------
# One case


def read_case(image_file: Path, mask_file: Path | None, task: Task, mirrored: bool) -> CaseContent:
    """Read one slice [H, W] uint8 and its mask. Raises UserError with the reason why it cannot be used."""
    import SimpleITK
    repairs: list[str] = []
    pixels = _gray(_open(image_file), image_file, repairs)
    label = None
    if mask_file is not None:
        if not mask_file.is_file():
            raise UserError(f"{mask_file} does not exist: the mask of {image_file.name} is missing")
        decode = _infection if task == "infection" else _multiclass
        label = decode(_open(mask_file), mask_file, repairs)
        if label.shape != pixels.shape:
            raise UserError(f"{mask_file} is {_size(label)}, its image {image_file.name} is {_size(pixels)}")
    if mirrored:
        pixels, label = pixels[:, ::-1], None if label is None else label[:, ::-1]
        repairs.append("mirrored left to right")
    to_image = SimpleITK.GetImageFromArray
    return CaseContent(images=(to_image(np.ascontiguousarray(pixels)),),
                       label=None if label is None else to_image(np.ascontiguousarray(label)), repairs=tuple(repairs))


def _open(file: Path) -> np.ndarray:
    """The decoded picture [H, W] or [H, W, 3] uint8; a palette becomes its colours."""
    from PIL import Image

    from nnunet_synth.data.raw_images import check_file
    check_file(file)
    try:
        with Image.open(file) as picture:
            picture.load()
            if picture.mode not in ("1", "L", "P", "RGB", "RGBA", "LA"):
                raise UserError(f"{file} is a picture of mode {picture.mode}: expected 8 bits a channel")
            return np.asarray(picture if picture.mode in ("L", "RGB") else
                              picture.convert("L" if picture.mode == "1" else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} is truncated or corrupt: copy it again ({error})") from error


def _gray(picture: np.ndarray, file: Path, repairs: list[str]) -> np.ndarray:
    if picture.ndim == 2:
        return picture
    spread = int(np.ptp(picture.astype(np.int16), axis=2).max())
    if spread > 16:                                     # JPEG's chroma rounding stays far below
        raise UserError(f"{file} is a colour picture (channels differ by up to {spread}): expected a gray CT slice")
    repairs.append("RGB to gray")
    return np.rint(picture.mean(axis=2)).astype(np.uint8)


def _infection(picture: np.ndarray, file: Path, repairs: list[str]) -> np.ndarray:
    """Binary mask {0, 255}; JPEG or resampling leaves values between, which are cut at 128."""
    gray = _gray(picture, file, repairs)
    num_odd = int(((gray != 0) & (gray != 255)).sum())
    if set(np.unique(gray)) == {0, 1}:                  # already label values
        return gray
    if num_odd:
        _check_share(num_odd, gray.size, file, "0 or 255")
        repairs.append(f"{num_odd} mask pixels neither 0 nor 255: cut at 128")
    return (gray >= 128).astype(np.uint8)


def _multiclass(picture: np.ndarray, file: Path, repairs: list[str]) -> np.ndarray:
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


def _check_share(num_odd: int, num_pixels: int, file: Path, expected: str, allowed: float = 0.05,
                 example: tuple[int, ...] | None = None) -> None:
    if num_odd > allowed * num_pixels:
        found = f", e.g. {example}" if example else ""
        raise UserError(f"{file} holds {num_odd} pixels that are not {expected}{found}: it is not a mask of this task")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]} pixels"


# ----------------------------------------------------------------------------------------------------------------------
# Which way the patient lies


def _spine_is_on_the_left(images: list[Path]) -> tuple[bool, float]:
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
