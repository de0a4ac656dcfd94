"""Raw layouts for a raw dataset: which voxel is left lung, which right, for every labelled and unlabelled case.

`data/layouts.py` brings them into the preprocessed grid later; here they are found and written beside the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synth.atomic import atomic_file, write_json
from nnunet_synth.data.lung_threshold import LAYOUT_LABELS, find_lungs
from nnunet_synth.data.raw_images import read_image, read_segmentation
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json
from nnunet_synth.parallel import parallel_map
from nnunet_synth.progress import progress

AIR_HU = -1024.0
DISPLAY_AXES = "PL"             # rows to posterior, columns to the patient's left: how radiologists look at a slice
REPORT_NAME = "layouts_report.json"

# Both lungs of an adult, breathed in or out, healthy or not; outside it something was missed or taken for lung.
PLAUSIBLE_LITRES = (1.0, 9.5)
PLAUSIBLE_SHARE = (0.04, 0.85)  # of the pixels of a slice
SMALLER_LUNG = 0.15             # at least this share of both

Finder = Callable[[str, Sequence[Path]], tuple[np.ndarray, dict[str, Any], Any]]


@dataclass(frozen=True)
class LayoutReport:
    """One case: how much lung was found, and what looks wrong with it.

    `left` and `right` are litres for volumes in HU, and shares of the slice's pixels for pictures without spacing.
    """

    id: str
    status: str                 # written | kept
    left: float = 0.0
    right: float = 0.0
    unit: str = ""              # l | share
    doubts: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------------------------------
# A whole dataset


def write_layouts(raw_folder: Path, method: str, num_jobs: int = 1, overwrite: bool = False,
                  orientation: str | None = None, layout_names: Sequence[str] = tuple(LAYOUT_LABELS),
                  inside: Sequence[str] | None = None) -> list[LayoutReport]:
    """Write layoutsTr and layoutsUl of a raw dataset and declare their labels in its dataset.json.

    Each file appears whole or not at all, so an interrupted run is continued by the same call; the labels are declared
    when all files are there.

    Args:
        raw_folder: …/nnUNet_raw/DatasetXXX_Name.
        method: `threshold` finds lungs in the images, `labels` takes them out of the dataset's own labels.
        overwrite: find again what is there already.
        orientation: axes of pictures without geometry, see `find_lungs`; default: dataset.json's, else "PL".
        layout_names: for `labels`, the dataset's labels that are anatomy.
        inside: for `labels`, the dataset's labels that lie inside the anatomy (lesions); default: all others.

    Raises:
        UserError: no images; an image that cannot be read; a label that dataset.json does not have; layouts of other
            labels are there already.
    """
    dataset_json = read_dataset_json(raw_folder)
    ending = dataset_json["file_ending"]
    if method == "labels":
        finder, layout_labels = _label_finder(raw_folder, dataset_json, layout_names, inside)
        parts = ("Tr",)
    else:
        orientation = orientation or dataset_json.get("nnunet_synth", {}).get("orientation", DISPLAY_AXES)
        finder, layout_labels = partial(find_by_threshold, dataset_json=dataset_json, orientation=orientation), \
            LAYOUT_LABELS
        parts = ("Tr", "Ul")
    cases = [(part, case_id, files) for part in parts
             for case_id, files in find_images(raw_folder / f"images{part}", ending).items()]
    if not cases:
        raise UserError(f"{raw_folder} holds no images *_0000{ending} in imagesTr or imagesUl")
    targets = [raw_folder / f"layouts{part}" / f"{case_id}{ending}" for part, case_id, _ in cases]
    _check_declared(dataset_json, layout_labels, any(target.exists() for target in targets) and not overwrite)

    work = [(case_id, files, target) for (_, case_id, files), target in zip(cases, targets, strict=True)]
    write = partial(_write_layout, finder=finder, num_labels=len(layout_labels), overwrite=overwrite)
    reports = list(progress(parallel_map(write, work, num_jobs), "layouts", total=len(work)))
    _declare(raw_folder, layout_labels)
    write_json({"method": method, "cases": [asdict(report) for report in reports]}, raw_folder / REPORT_NAME)
    return reports


def find_images(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case id → its channels in order, for the `CASE_0000.ext` files of a folder."""
    cases: dict[str, list[Path]] = {}
    for file in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")) if folder.is_dir() else []:
        if not file.name.startswith("."):
            cases.setdefault(file.name[:-len("_0000") - len(ending)], []).append(file)
    return cases


def read_dataset_json(raw_folder: Path) -> dict[str, Any]:
    return read_json(raw_folder / "dataset.json", "is nnUNet_raw set to the folder of your datasets?", "correct it")


def _write_layout(case: tuple[str, Sequence[Path], Path], finder: Finder, num_labels: int,
                  overwrite: bool) -> LayoutReport:
    case_id, files, target = case
    if target.exists() and not overwrite:
        return LayoutReport(case_id, "kept")
    layout, properties, reader_writer = finder(case_id, files)
    with atomic_file(target) as temporary:
        reader_writer.write_seg(layout, str(temporary), properties)
    return summarise(case_id, layout, properties, num_labels)


def _check_declared(dataset_json: Mapping[str, Any], layout_labels: Mapping[str, int], are_kept: bool) -> None:
    declared = dataset_json.get("nnunet_synth", {}).get("layout_labels", {})
    if are_kept and declared and declared != dict(layout_labels):
        raise UserError(f"there are layouts with other labels ({', '.join(declared)}): replace them all by --overwrite")


def _declare(raw_folder: Path, layout_labels: Mapping[str, int]) -> None:
    dataset_json = read_dataset_json(raw_folder)        # read again: it may have changed in the meantime
    ours = {**dataset_json.get("nnunet_synth", {}), "layout_labels": dict(layout_labels)}
    write_json({**dataset_json, "nnunet_synth": ours}, raw_folder / "dataset.json")


def summarise(case_id: str, layout: np.ndarray, properties: Mapping[str, Any], num_labels: int = 2) -> LayoutReport:
    """How much of each lung there is and whether that can be."""
    spacing = properties["spacing"]
    is_picture = "sitk_stuff" not in properties and "nibabel_stuff" not in properties or layout.shape[0] == 1
    unit, factor = ("share", 1 / layout.size) if is_picture else ("l", float(np.prod(spacing)) / 1e6)
    amounts = [float((layout == value).sum()) * factor for value in range(1, num_labels + 1)]
    low, high = PLAUSIBLE_SHARE if is_picture else PLAUSIBLE_LITRES
    total = sum(amounts)
    doubts = []
    if total == 0:
        doubts.append("no lung found")
    elif not low <= total <= high:
        doubts.append(f"{'little' if total < low else 'much'} lung")
    if num_labels == 2 and total > 0 and min(amounts) < SMALLER_LUNG * total:
        doubts.append("one lung is missing or small")
    return LayoutReport(case_id, "written", round(amounts[0], 4), round(amounts[1], 4) if num_labels > 1 else 0.0, unit,
                        tuple(doubts))


# ----------------------------------------------------------------------------------------------------------------------
# Methods


def find_by_threshold(case_id: str, files: Sequence[Path], dataset_json: Mapping[str, Any],
                      orientation: str) -> tuple[np.ndarray, dict[str, Any], Any]:
    """Left and right lung [z, y, x] uint8 of one case, with nnU-Net's properties and reader for writing it."""
    reader_writer = reader_writer_of(dataset_json, files[0])
    image, properties = read_image(files, reader_writer)
    channel = _ct_channel(dataset_json)
    if channel >= len(image):
        raise UserError(f"{files[0]}: case {case_id} has {len(image)} channel(s), dataset.json names more")
    image = image[channel]
    is_hu = _is_hu(image, dataset_json, channel, files[0])
    axes, has_geometry = axes_of(properties, orientation)
    return find_lungs(image, properties["spacing"] if has_geometry else None, axes, is_hu), properties, reader_writer


def _label_finder(raw_folder: Path, dataset_json: Mapping[str, Any], names: Sequence[str],
                  inside: Sequence[str] | None) -> tuple[Finder, dict[str, int]]:
    labels = {name: value for name, value in dataset_json["labels"].items() if isinstance(value, int)}
    known = {_normal(name): name for name in labels if labels[name] != 0 and name != "ignore"}
    unknown = [name for name in (*names, *(inside or ())) if _normal(name) not in known]
    if unknown:
        raise UserError(f"dataset.json has no label {unknown[0]!r} (it has: {', '.join(labels)}): name its lung labels "
                        "with --layout-labels, or use --method threshold")
    anatomy = [labels[known[_normal(name)]] for name in names]
    if inside is None:
        lesions = [labels[name] for name in known.values() if labels[name] not in anatomy]
    else:
        lesions = [labels[known[_normal(name)]] for name in inside]
    finder = partial(find_by_labels, raw_folder=raw_folder, dataset_json=dataset_json, anatomy=anatomy, lesions=lesions)
    return finder, {name: index + 1 for index, name in enumerate(names)}


def find_by_labels(case_id: str, files: Sequence[Path], raw_folder: Path, dataset_json: Mapping[str, Any],
                   anatomy: Sequence[int], lesions: Sequence[int]) -> tuple[np.ndarray, dict[str, Any], Any]:
    """Layout 1, 2, … = the labels `anatomy` in order; a lesion's voxel belongs to the anatomy that is nearest (mm)."""
    from scipy.ndimage import distance_transform_edt
    reader_writer = reader_writer_of(dataset_json, files[0])
    ending = dataset_json["file_ending"]
    label, properties = read_segmentation(raw_folder / "labelsTr" / f"{case_id}{ending}", reader_writer)
    label = label[0]
    layout = np.zeros(label.shape, np.uint8)
    for index, value in enumerate(anatomy):
        layout[label == value] = index + 1
    lesion = np.isin(label, lesions)
    if lesion.any() and layout.any():
        nearest = distance_transform_edt(layout == 0, sampling=properties["spacing"], return_distances=False,
                                         return_indices=True)
        layout[lesion] = layout[tuple(nearest)][lesion]
    return layout, properties, reader_writer


def reader_writer_of(dataset_json: Mapping[str, Any], file: Path) -> Any:
    """An instance of the class nnU-Net reads this dataset with."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    try:
        return determine_reader_writer_from_dataset_json(dataset_json, verbose=False)()
    except RuntimeError as error:
        raise UserError(f"nnU-Net has no reader for {file.name}: {error}") from error


def _ct_channel(dataset_json: Mapping[str, Any]) -> int:
    names = dataset_json.get("channel_names") or dataset_json.get("modality", {})
    return next((int(index) for index, name in names.items() if str(name).casefold() == "ct"), 0)


def _is_hu(image: np.ndarray, dataset_json: Mapping[str, Any], channel: int, file: Path) -> bool:
    """By the channel's name, else by the values: nothing but HU goes far below zero."""
    names = dataset_json.get("channel_names") or dataset_json.get("modality", {})
    if str(names.get(str(channel), "")).casefold() == "ct" or image.min() < -200:
        return True
    if image.min() >= 0 and image.max() <= 255:
        return False
    raise UserError(f"{file} holds neither HU nor 8-bit gray values (values {image.min():g} to {image.max():g}): lungs "
                    "cannot be found in it by thresholds")


def axes_of(properties: Mapping[str, Any], orientation: str = DISPLAY_AXES) -> tuple[str, bool]:
    """Axis codes of nnU-Net's array [z, y, x] (see `find_lungs`), and whether they come from the image's geometry."""
    if "sitk_stuff" in properties:
        direction = np.array(properties["sitk_stuff"]["direction"])
        if direction.size == 9:
            return _codes(direction.reshape(3, 3))[::-1], True
        return f"S{orientation}", True
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))
        return _codes(np.diag([-1, -1, 1]) @ affine[:3, :3])[::-1], True       # RAS → LPS
    return f"S{orientation}", False


def _codes(direction: np.ndarray) -> str:
    """LPS direction columns → the nearest axis code of each image axis; each body axis is used once."""
    from itertools import permutations
    cosines = direction / np.linalg.norm(direction, axis=0)
    best = max(permutations(range(3)), key=lambda body: sum(abs(cosines[body[axis], axis]) for axis in range(3)))
    return "".join(("LPS" if cosines[body, axis] > 0 else "RAI")[body] for axis, body in enumerate(best))


def _normal(name: str) -> str:
    return name.casefold().replace(" ", "_").replace("-", "_")


# ----------------------------------------------------------------------------------------------------------------------
# Masked copies, to predict with a model that saw nothing but lung


def write_masked_images(images: Path, masked: Path, dataset_json: Mapping[str, Any], orientation: str | None = None,
                        num_jobs: int = 1) -> list[LayoutReport]:
    """Copy a folder of `CASE_0000.ext` with everything outside the lungs set to air: −1024 HU, or 0 in pictures.

    Each copy keeps type and geometry. The lungs are found by threshold.

    Raises:
        UserError: no images; `masked` exists; an image that cannot be read.
    """
    from nnunet_synth.atomic import atomic_folder
    ending = dataset_json["file_ending"]
    if not images.is_dir():
        raise UserError(f"{images} is not a folder")
    cases = find_images(images, ending)
    if not cases:
        raise UserError(f"{images} holds no images *_0000{ending}")
    if masked.exists():
        raise UserError(f"{masked} exists; choose another folder or remove it")
    orientation = orientation or dataset_json.get("nnunet_synth", {}).get("orientation", DISPLAY_AXES)
    with atomic_folder(masked) as folder:
        mask = partial(_write_masked, folder=folder, dataset_json=dataset_json, orientation=orientation)
        return list(progress(parallel_map(mask, list(cases.items()), num_jobs), "mask", total=len(cases)))


def _write_masked(case: tuple[str, list[Path]], folder: Path, dataset_json: Mapping[str, Any],
                  orientation: str) -> LayoutReport:
    import SimpleITK
    case_id, files = case
    # Found as SimpleITK sees the voxels, whatever reader the dataset uses, because SimpleITK writes the copy.
    simple = {key: value for key, value in dataset_json.items() if key != "overwrite_image_reader_writer"}
    layout, properties, _ = find_by_threshold(case_id, files, simple, orientation)
    names = simple.get("channel_names") or simple.get("modality", {})
    for channel, file in enumerate(files):
        source = SimpleITK.ReadImage(str(file))
        voxels = SimpleITK.GetArrayFromImage(source)
        is_ct = str(names.get(str(channel), "")).casefold() == "ct" or voxels.min() < -200
        voxels[(layout == 0).reshape(voxels.shape)] = AIR_HU if is_ct else 0
        copy = SimpleITK.GetImageFromArray(voxels)
        copy.CopyInformation(source)
        SimpleITK.WriteImage(copy, str(folder / file.name), useCompression=True)
    return summarise(case_id, layout, properties)
