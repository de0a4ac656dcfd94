"""Where images to be judged come from: folders of pictures or volumes, and nnU-Net's raw datasets.

A volume is cut into slices perpendicular to the axis with the largest spacing, as nnU-Net cuts it for its 2d
configurations.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synth.data.misnamed import passed_over
from nnunet_synth.data.nnunet_folders import environment_folder, find_dataset
from nnunet_synth.data.raw_images import check_file, check_name, list_cases, read_image, read_segmentation
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json
from nnunet_synth.progress import progress
from nnunet_synth.quality.image_set import SMALLEST, ImageSet, ImageStore

PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
PARTS = ("imagesTr", "imagesTs", "imagesUl")
MAX_HEADERS = 50        # read to find out along which axis slices lie


@dataclass(frozen=True)
class Source:
    """Files that hold the images of one set.

    Attributes:
        folder: that holds them.
        cases: case id → its channels in order.
        labels, layouts: folders of label and layout maps with the same names, where there are any.
        ending: of the dataset's files; "" for a plain folder, in which every file is a case of its own.
        dataset_json: nnU-Net's; {} for a plain folder.
    """

    folder: Path
    cases: Mapping[str, Sequence[Path]]
    labels: Path | None = None
    layouts: Path | None = None
    ending: str = ""
    dataset_json: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> Path:
        """Where our converters write what is known about the cases."""
        return self.folder.parent / "metadata.csv"

    @property
    def is_ct(self) -> bool:
        """By the rule of nnU-Net: the channel is called CT."""
        names = self.dataset_json.get("channel_names") or self.dataset_json.get("modality") or {}
        return [str(name).lower() for name in names.values()] == ["ct"]

    @property
    def drawn_range(self) -> tuple[float, float] | None:
        """Outside which `sample --as-dataset` drew nothing; None where that is not known, or differs by channel."""
        synthetic = (self.dataset_json.get("nnunet_synth") or {}).get("synthetic") or {}
        ranges = {tuple(bounds) for bounds in synthetic.get("intensity_range", ())}
        return ranges.pop() if len(ranges) == 1 else None

    def lesion_values(self, wanted: Sequence[str] | None = None) -> list[int]:
        """The labels that are lesions: those called (or valued) as in `wanted`, by default all foreground.

        Raises:
            UserError: dataset.json declares no such label.
        """
        declared = {name: [value] if isinstance(value, int) else list(value)
                    for name, value in self.dataset_json.get("labels", {}).items() if name != "ignore"}
        known = {**{str(value): [value] for values in declared.values() for value in values}, **declared}
        if wanted is None:
            return sorted({value for values in declared.values() for value in values if value > 0})
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UserError(f"unknown label {unknown[0]!r}: {self.folder.parent / 'dataset.json'} declares "
                            f"{', '.join(declared)}")
        return sorted({value for name in wanted for value in known[name]})


def find_source(where: str | int | Path) -> Source:
    """A dataset (its folder, id or name: the training images), one of a dataset's image folders, or any other folder.

    Raises:
        UserError: there is no such folder or dataset, or no image in it.
    """
    path = Path(str(where))
    if not path.exists() and (str(where).isdigit() or str(where).startswith("Dataset")):
        path = environment_folder("nnUNet_raw") / find_dataset(str(where))
    if not path.is_dir():
        raise UserError(f"{where} is no folder" + ("" if path.exists() else " and no dataset of nnUNet_raw")
                        + ": give a folder of images, or a dataset's folder, id or name")
    if (path / "dataset.json").is_file():
        return _dataset_part(path / "imagesTr")
    if path.name in PARTS and (path.parent / "dataset.json").is_file():
        return _dataset_part(path)
    return _plain_folder(path)


def _dataset_part(folder: Path) -> Source:
    dataset_json = read_json(folder.parent / "dataset.json", "restore it", "correct it")
    if not isinstance(dataset_json, dict) or "file_ending" not in dataset_json:
        raise UserError(f"{folder.parent / 'dataset.json'} has no file_ending: it is not nnU-Net's, restore it")
    cases = list_cases(folder, dataset_json["file_ending"])
    if not cases:
        raise UserError(passed_over(folder, dataset_json["file_ending"])
                        or f"{folder} holds no images called CASE_0000{dataset_json['file_ending']}")
    labels, layouts = (folder.parent / f"{kind}{folder.name[-2:]}" for kind in ("labels", "layouts"))
    return Source(folder, cases, labels if labels.is_dir() else None, layouts if layouts.is_dir() else None,
                  dataset_json["file_ending"], dataset_json)


def _plain_folder(folder: Path) -> Source:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
                   and path.name.lower().endswith(PICTURES + VOLUMES))
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(PICTURES + VOLUMES)})")
    return Source(folder, {path.name: [path] for path in files})


# ----------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Selection:
    """Which slices are taken.

    Attributes:
        limit: at most as many images of a set, spread evenly over cases and slices; None = all.
        lesions_only: slices with a lesion.
        labels: names or values of the lesions' labels; None = all foreground.
        size: images are resized to size × size pixels; None = they stay.
    """

    limit: int | None = 1000
    lesions_only: bool = False
    labels: Sequence[str] | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise UserError(f"-n {self.limit}: a distance between sets needs two images or more (0: all there are)")
        if self.size is not None and self.size < SMALLEST:
            raise UserError(f"--size {self.size}: images need at least {SMALLEST} pixels a side")


def read_images(source: Source, name: str, scratch: Path, selection: Selection) -> ImageSet:
    """Read the images of a source; they are kept in the folder `scratch`, which must not exist.

    Slices that show nothing are passed over: without anatomy or label where the dataset has layouts, constant ones
    elsewhere.

    Raises:
        UserError: a file is damaged, sizes are mixed, fewer than two images are left, or lesions are asked for and
            nothing says where they are.
    """
    if selection.lesions_only and source.labels is None:
        raise UserError(f"{source.folder} has no labels beside it: nothing tells which of its images show lesions")
    store = ImageStore(name, scratch, selection.size)
    lesions = source.lesion_values(selection.labels) if source.labels else []
    read = _reader(source)
    case_ids = _evenly(list(source.cases), selection.limit)
    axis = _slice_axis([source.cases[case_id][0] for case_id in case_ids])
    for number, case_id in enumerate(progress(case_ids, f"reading {name}")):
        slices = _read_case(source, case_id, read, lesions, axis)
        shown = np.flatnonzero(slices.has_lesion if selection.lesions_only else slices.shows)
        if selection.limit is not None:     # what earlier cases left of their share goes to the later ones
            share = -(-(selection.limit - len(store.cases)) // (len(case_ids) - number))
            shown = _evenly(shown.tolist(), share)
        for index in shown:
            store.add(slices.image[:, index], slices.label[index], case_id)
    what = "slices with lesions" if selection.lesions_only else "images"
    return store.finish(f"{what} of {source.folder}", source.labels is not None)


@dataclass(frozen=True)
class _CaseSlices:
    """image [C, z, H, W], label [z, H, W] (lesions only), and for each slice whether it shows something."""

    image: np.ndarray
    label: np.ndarray
    shows: np.ndarray

    @property
    def has_lesion(self) -> np.ndarray:
        return self.label.any((1, 2))


Read = Callable[[Sequence[Path]], np.ndarray]


def _read_case(source: Source, case_id: str, read: tuple[Read, Read], lesions: Sequence[int],
               axis: int) -> _CaseSlices:
    read_channels, read_map = read
    image = read_channels(source.cases[case_id])

    def beside(folder: Path | None) -> np.ndarray | None:
        path = None if folder is None else folder / f"{case_id}{source.ending}"
        if path is None or not path.is_file():
            return None
        found = read_map([path])
        if found.shape != image.shape[1:]:
            raise UserError(f"{path} and the image of {case_id} differ in shape: {found.shape} and {image.shape[1:]}")
        return found

    label, layout = beside(source.labels), beside(source.layouts)
    label = np.zeros(image.shape[1:], np.uint8) if label is None else label
    if 1 in image.shape[1:]:            # a single slice, along whichever axis
        axis = image.shape[1:].index(1)
    image, label, layout = (None if array is None else np.moveaxis(array, axis - 3, -3)
                            for array in (image, label, layout))
    shows = np.ptp(image[0], axis=(1, 2)) > 0 if layout is None else (layout > 0).any((1, 2)) | (label > 0).any((1, 2))
    return _CaseSlices(image, np.where(np.isin(label, lesions), label, 0).astype(np.uint8), shows)


def _reader(source: Source) -> tuple[Read, Read]:
    """Channels of a case → [C, z, y, x], and the file of a map → [z, y, x]."""
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if not source.ending:
        def read_file(files: Sequence[Path]) -> np.ndarray:
            is_picture = files[0].name.lower().endswith(PICTURES)
            image = read_image(files, NaturalImage2DIO() if is_picture else SimpleITKIO())[0]
            return _without_needless_channels(image) if is_picture else image

        return read_file, read_file

    example = next(iter(source.cases.values()))[0]
    check_file(example)                 # the look-up tries all readers and says only that none works
    reader = determine_reader_writer_from_dataset_json(source.dataset_json, str(example), verbose=False)()
    return (lambda files: read_image(files, reader)[0]), (lambda files: read_segmentation(files[0], reader)[0][0])


def _without_needless_channels(image: np.ndarray) -> np.ndarray:
    """A picture [C, 1, H, W] without alpha, and with one channel if its colours are all gray."""
    image = image[:len(image) - 1] if len(image) in (2, 4) else image
    return image[:1] if (image == image[:1]).all() else image


def _slice_axis(files: Sequence[Path]) -> int:
    """Of [z, y, x] the axis with the largest spacing (median over the files); 0 where the files do not say."""
    import SimpleITK
    spacings = []
    for file in _evenly(list(files), MAX_HEADERS):
        if file.name.lower().endswith(VOLUMES):
            check_name(file)
            header = SimpleITK.ImageFileReader()
            header.SetFileName(str(file))
            try:
                header.ReadImageInformation()
            except RuntimeError:        # reading the image will tell what is wrong with it
                continue
            spacings.append(header.GetSpacing()[::-1])
    if not spacings or {len(spacing) for spacing in spacings} != {3}:
        return 0
    medians = [statistics.median(steps) for steps in zip(*spacings, strict=True)]
    return medians.index(max(medians))


def _evenly(items: list, at_most: int | None) -> list:
    """At most `at_most` of the items, evenly spread, the first and the last among them."""
    if at_most is None or at_most >= len(items):
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, at_most).round().astype(int)]
