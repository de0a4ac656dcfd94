"""Raw layouts for a raw dataset: which voxel is left lung, which right, for every labelled and unlabelled case.

Other maps are written the same way (`write_maps`). `data/layouts.py` brings them into the preprocessed grid later; here
they are found and written beside the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synth.atomic import atomic_file, write_json
from nnunet_synth.data import planned_files
from nnunet_synth.data.body_axes import DISPLAY_AXES, axes_of, canonical_order, to_canonical
from nnunet_synth.data.chest_anatomy import is_heart_on_the_right, is_spine_in_front
from nnunet_synth.data.lung_network import LungNetwork, find_lungs_by_network
from nnunet_synth.data.lung_threshold import LAYOUT_LABELS, calibrate, find_lungs
from nnunet_synth.data.misnamed import passed_over
from nnunet_synth.data.raw_images import list_cases, read_image, read_segmentation
from nnunet_synth.errors import UserError
from nnunet_synth.parallel import parallel_map
from nnunet_synth.progress import progress

AIR_HU = -1024.0
REPORT_NAMES = {"layout": "layouts_report.json", "cluster": "clusters_report.json"}

# Both lungs; outside it something was missed or taken for lung. Healthy adults have 4.67 ± 1.19 litres by CT (mean and
# SD of 1,787; Cheng et al., Int J COPD 14:1657, 2019): the upper bound is 4 SD above. At quiet breathing there are 2.8
# (1.9 litres of air, 67 % of the lung, in 11 men; BMC Med Imaging 14:25, 2014), and consolidation takes its share of
# them: below one litre it is a child, a partial scan, or somebody must look.
PLAUSIBLE_LITRES = (1.0, 9.5)
PLAUSIBLE_SHARE = (0.04, 0.85)  # of the pixels of a slice
SMALLER_LUNG = 0.15             # at least this share of both
CUT_OFF = 0.2                   # a scan whose first or last slice shows this share of the widest one's lung cuts it off


@dataclass(frozen=True)
class Found:
    """A case's layout and what is needed for writing and judging it.

    Attributes:
        layout: [z, y, x] uint8.
        properties: nnU-Net's, of the image.
        reader_writer: an instance of the class nnU-Net reads this dataset with.
        doubts: what in the image contradicts its geometry.
    """

    layout: np.ndarray
    properties: dict[str, Any]
    reader_writer: Any
    doubts: tuple[str, ...] = ()


Finder = Callable[[str, Sequence[Path]], Found]


@dataclass(frozen=True)
class LayoutReport:
    """One case: how much of each anatomy was found, and what looks wrong with it."""

    id: str
    status: str                 # written | kept
    amounts: dict[str, float]   # name of the anatomy → in `unit`
    unit: str                   # l (litres), or for pictures without spacing: share (of the slice's pixels)
    doubts: tuple[str, ...]


# ----------------------------------------------------------------------------------------------------------------------
# A whole dataset


def write_layouts(raw_folder: Path, method: str, num_jobs: int = 1, overwrite: bool = False,
                  orientation: str | None = None, layout_names: Sequence[str] = tuple(LAYOUT_LABELS),
                  inside: Sequence[str] | None = None, network: LungNetwork | None = None) -> list[LayoutReport]:
    """Write layoutsTr and layoutsUl of a raw dataset and declare their labels in its dataset.json.

    Each file appears whole or not at all, so an interrupted run is continued by the same call; the labels are declared
    when all files are there.

    Args:
        raw_folder: …/nnUNet_raw/DatasetXXX_Name.
        method: `threshold` and `lungmask` find lungs in the images, `labels` takes them out of the labels.
        overwrite: find again what is there already.
        orientation: axes of pictures without geometry, see `find_lungs`; default: dataset.json's, else "PL".
        layout_names: for `labels`, the dataset's labels that are anatomy.
        inside: for `labels`, the dataset's labels that lie inside the anatomy (lesions); default: all others.
        network: for `lungmask`.

    Raises:
        UserError: no images; an image that cannot be read; a label that dataset.json does not have; layouts of other
            labels are there already.
    """
    dataset_json = read_dataset_json(raw_folder)
    if method == "labels":
        finder, layout_labels = _label_finder(raw_folder, dataset_json, layout_names, inside)
        parts = ("Tr",)
    else:
        finder, layout_labels = _image_finder(dataset_json, orientation, network), LAYOUT_LABELS
        parts = ("Tr", "Ul")
    description = {} if network is None else {"model": network.name, "weights_sha256": network.sha256}
    return write_maps(raw_folder, finder, layout_labels, {"method": method, **description}, "layout", parts, num_jobs,
                      overwrite)


def write_maps(raw_folder: Path, finder: Finder, labels: Mapping[str, int], description: Mapping[str, Any],
               into: str = "layout", parts: Sequence[str] = ("Tr", "Ul"), num_jobs: int = 1,
               overwrite: bool = False) -> list[LayoutReport]:
    """Write what `finder` finds for every case: into layoutsTr and layoutsUl, or into clustersTr and clustersUl.

    dataset.json declares the labels of layouts, and of clusters the description: how they were made.

    Args:
        into: `layout` or `cluster`.
        labels: name → value that is measured and, for layouts, declared.
        description: of the method, into the report; must hold `method`.
        parts: Tr, Ul or both.

    Raises:
        UserError: no images; an image that cannot be read; there are maps already that were made otherwise.
    """
    dataset_json = read_dataset_json(raw_folder)
    ending = dataset_json["file_ending"]
    cases = [(part, case_id, files) for part in parts
             for case_id, files in list_cases(raw_folder / f"images{part}", ending).items()]
    if not cases:
        said = [sentence for part in parts if (sentence := passed_over(raw_folder / f"images{part}", ending))]
        raise UserError(said[0] if said else f"{raw_folder} holds no images *_0000{ending} in imagesTr or imagesUl")
    targets = [raw_folder / f"{into}s{part}" / f"{case_id}{ending}" for part, case_id, _ in cases]
    are_kept = any(target.exists() for target in targets) and not overwrite
    if into == "layout":
        _check_declared(dataset_json, labels, are_kept)
    else:
        _check_clusters(dataset_json, description, are_kept)
        _declare(raw_folder, "clusters", description)

    work = [(case_id, files, target) for (_, case_id, files), target in zip(cases, targets, strict=True)]
    write = partial(_write_map, finder=finder, dataset_json=dataset_json, labels=labels, overwrite=overwrite)
    before = _times(targets)
    try:
        reports = list(progress(parallel_map(write, work, num_jobs), f"{into}s", total=len(work)))
    except BaseException:
        if into == "cluster" and _times(targets) == before:     # nothing was made, so the declaration would be wrong
            _declare(raw_folder, "clusters", dataset_json.get("nnunet_synth", {}).get("clusters"))
        raise
    if into == "layout":
        _declare(raw_folder, "layout_labels", labels)
    write_json({**description, "cases": [asdict(report) for report in reports]}, raw_folder / REPORT_NAMES[into])
    return reports


def read_dataset_json(raw_folder: Path) -> dict[str, Any]:
    return planned_files.read_dataset_json(raw_folder / "dataset.json",
                                           "is nnUNet_raw set to the folder of your datasets?", "correct it")


def _write_map(case: tuple[str, Sequence[Path], Path], finder: Finder, dataset_json: Mapping[str, Any],
               labels: Mapping[str, int], overwrite: bool) -> LayoutReport:
    case_id, files, target = case
    if target.exists() and not overwrite:
        reader_writer = reader_writer_of(dataset_json, target)
        layout, properties = read_segmentation(target, reader_writer)       # measured again: it may have been corrected
        return summarise(case_id, "kept", Found(layout[0].astype(np.uint8), properties, reader_writer), labels)
    found = finder(case_id, files)
    with atomic_file(target) as temporary:
        found.reader_writer.write_seg(found.layout, str(temporary), found.properties)
    return summarise(case_id, "written", found, labels)


def _check_declared(dataset_json: Mapping[str, Any], layout_labels: Mapping[str, int], are_kept: bool) -> None:
    declared = dataset_json.get("nnunet_synth", {}).get("layout_labels", {})
    if are_kept and declared and declared != dict(layout_labels):
        raise UserError(f"there are layouts with other labels ({', '.join(declared)}): replace them all by --overwrite")


def _check_clusters(dataset_json: Mapping[str, Any], description: Mapping[str, Any], are_kept: bool) -> None:
    declared = dataset_json.get("nnunet_synth", {}).get("clusters", description)
    if are_kept and declared != dict(description):
        made = ", ".join(f"{name} {value}" for name, value in declared.items())
        raise UserError(f"there are clusters that were made otherwise ({made}): replace them all by --overwrite")


def _declare(raw_folder: Path, key: str, facts: Mapping[str, Any] | None) -> None:
    """None = take the declaration back."""
    dataset_json = read_dataset_json(raw_folder)        # read again: it may have changed in the meantime
    ours = {name: value for name, value in dataset_json.get("nnunet_synth", {}).items() if name != key}
    if facts is not None:
        ours[key] = dict(facts)
    write_json({**dataset_json, "nnunet_synth": ours}, raw_folder / "dataset.json")


def _times(files: Sequence[Path]) -> dict[Path, int]:
    """When each of those that exist was written."""
    return {file: file.stat().st_mtime_ns for file in files if file.exists()}


def summarise(case_id: str, status: str, found: Found,
              layout_labels: Mapping[str, int] = LAYOUT_LABELS) -> LayoutReport:
    """How much of each anatomy there is and, for lungs, whether that can be."""
    layout = found.layout
    is_volume = _has_geometry(found.properties) and layout.shape[0] > 1
    factor = float(np.prod(found.properties["spacing"])) / 1e6 if is_volume else 1 / layout.size
    amounts = {name: float((layout == value).sum()) * factor for name, value in layout_labels.items()}
    doubts: list[str] = []
    if not layout.any():
        doubts.append("nothing found")
    elif set(layout_labels) == set(LAYOUT_LABELS):      # of other anatomy, nothing is known here
        doubts += _doubts_of_size(amounts, PLAUSIBLE_LITRES if is_volume else PLAUSIBLE_SHARE)
        if is_volume:
            doubts += _doubts_of_volume(found, layout_labels, "little lung" in doubts)
    return LayoutReport(case_id, status, {name: round(amount, 4) for name, amount in amounts.items()},
                        "l" if is_volume else "share", (*doubts, *found.doubts))


def _doubts_of_size(amounts: Mapping[str, float], plausible: tuple[float, float]) -> Iterator[str]:
    total = sum(amounts.values())
    if total < plausible[0]:
        yield "little lung"
    if total > plausible[1]:
        yield "much lung"
    if min(amounts.values()) < SMALLER_LUNG * total:
        yield "one lung is missing or small"


def _doubts_of_volume(found: Found, layout_labels: Mapping[str, int], is_little: bool) -> Iterator[str]:
    axes, _ = axes_of(found.properties)
    layout = to_canonical(found.layout, axes)
    areas = (layout > 0).sum(axis=(1, 2))
    if is_little and max(areas[0], areas[-1]) > CUT_OFF * areas.max():
        yield "the first or last slice cuts the lungs off"
    left, right = (layout == layout_labels[name] for name in ("left_lung", "right_lung"))
    if is_heart_on_the_right(left, right, found.properties["spacing"][canonical_order(axes)[2]]):
        yield "the heart is on the right: are left and right swapped?"


def _has_geometry(properties: Mapping[str, Any]) -> bool:
    return "sitk_stuff" in properties or "nibabel_stuff" in properties


# ----------------------------------------------------------------------------------------------------------------------
# Methods


@dataclass(frozen=True)
class Scan:
    """The CT channel of a case.

    Attributes:
        image: [z, y, x] in HU, or gray values of an unknown window.
        axes: see `body_axes.py`.
        spacing: mm along each axis; None for pictures.
    """

    image: np.ndarray
    axes: str
    spacing: tuple[float, ...] | None
    is_hu: bool
    properties: dict[str, Any]
    reader_writer: Any


def _image_finder(dataset_json: Mapping[str, Any], orientation: str | None, network: LungNetwork | None) -> Finder:
    orientation = orientation or dataset_json.get("nnunet_synth", {}).get("orientation", DISPLAY_AXES)
    if network is None:
        return partial(find_by_threshold, dataset_json=dataset_json, orientation=orientation)
    return partial(find_by_network, dataset_json=dataset_json, orientation=orientation, network=network)


def find_by_threshold(case_id: str, files: Sequence[Path], dataset_json: Mapping[str, Any], orientation: str) -> Found:
    """Left and right lung of one case by classical image processing."""
    scan = _read_scan(case_id, files, dataset_json, orientation)
    return _judged(scan, find_lungs(scan.image, scan.spacing, scan.axes, scan.is_hu))


def find_by_network(case_id: str, files: Sequence[Path], dataset_json: Mapping[str, Any], orientation: str,
                    network: LungNetwork) -> Found:
    """Left and right lung of one case by lungmask."""
    scan = _read_scan(case_id, files, dataset_json, orientation)
    hu = scan.image if scan.is_hu else np.stack([calibrate(picture) for picture in scan.image])
    return _judged(scan, find_lungs_by_network(hu, scan.axes, network))


def _read_scan(case_id: str, files: Sequence[Path], dataset_json: Mapping[str, Any], orientation: str) -> Scan:
    reader_writer = reader_writer_of(dataset_json, files[0])
    image, properties = read_image(files, reader_writer)
    channel = _ct_channel(dataset_json)
    if channel >= len(image):
        raise UserError(f"{files[0]}: case {case_id} has {len(image)} channel(s), dataset.json names more")
    image = image[channel]
    axes, has_geometry = axes_of(properties, orientation)
    return Scan(image, axes, tuple(properties["spacing"]) if has_geometry else None,
                _is_hu(image, dataset_json, channel, files[0]), properties, reader_writer)


def _judged(scan: Scan, lungs: np.ndarray) -> Found:
    doubts: tuple[str, ...] = ()
    if scan.is_hu and scan.spacing is not None and len(scan.image) > 1 and \
            is_spine_in_front(to_canonical(scan.image, scan.axes), to_canonical(lungs, scan.axes)):
        doubts = ("the spine is in front: are front and back swapped?",)
    return Found(lungs, scan.properties, scan.reader_writer, doubts)


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
                   anatomy: Sequence[int], lesions: Sequence[int]) -> Found:
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
    return Found(layout, properties, reader_writer)


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
    if holds_hu(image, dataset_json, channel):
        return True
    if image.min() >= 0 and image.max() <= 255:
        return False
    raise UserError(f"{file} holds neither HU nor 8-bit gray values (values {image.min():g} to {image.max():g}): lungs "
                    "cannot be found in it")


def holds_hu(image: np.ndarray, dataset_json: Mapping[str, Any], channel: int) -> bool:
    """By the channel's name, else by the values: nothing but HU goes far below zero."""
    names = dataset_json.get("channel_names") or dataset_json.get("modality", {})
    return str(names.get(str(channel), "")).casefold() == "ct" or bool(image.min() < -200)


def _normal(name: str) -> str:
    return name.casefold().replace(" ", "_").replace("-", "_")


# ----------------------------------------------------------------------------------------------------------------------
# Masked copies, to predict with a model that saw nothing but lung


def write_masked_images(images: Path, masked: Path, dataset_json: Mapping[str, Any], orientation: str | None = None,
                        num_jobs: int = 1, network: LungNetwork | None = None) -> list[LayoutReport]:
    """Copy a folder of `CASE_0000.ext` with everything outside the lungs set to air: −1024 HU, or 0 in pictures.

    Each copy keeps type and geometry. The lungs are found by `network`, by threshold if there is none.

    Raises:
        UserError: no images; `masked` exists; an image that cannot be read.
    """
    from nnunet_synth.atomic import atomic_folder
    ending = dataset_json["file_ending"]
    if not images.is_dir():
        raise UserError(f"{images} is not a folder")
    cases = list_cases(images, ending)
    if not cases:
        raise UserError(passed_over(images, ending) or f"{images} holds no images *_0000{ending}")
    if masked.exists():
        raise UserError(f"{masked} exists; choose another folder or remove it")
    # Found as SimpleITK sees the voxels, whatever reader the dataset uses, because SimpleITK writes the copy.
    simple = {key: value for key, value in dataset_json.items() if key != "overwrite_image_reader_writer"}
    with atomic_folder(masked) as folder:
        mask = partial(_write_masked, folder=folder, dataset_json=simple,
                       finder=_image_finder(simple, orientation, network))
        return list(progress(parallel_map(mask, list(cases.items()), num_jobs), "mask", total=len(cases)))


def _write_masked(case: tuple[str, list[Path]], folder: Path, dataset_json: Mapping[str, Any],
                  finder: Finder) -> LayoutReport:
    import SimpleITK
    case_id, files = case
    found = finder(case_id, files)
    names = dataset_json.get("channel_names") or dataset_json.get("modality", {})
    for channel, file in enumerate(files):
        source = SimpleITK.ReadImage(str(file))
        voxels = SimpleITK.GetArrayFromImage(source)
        is_ct = str(names.get(str(channel), "")).casefold() == "ct" or voxels.min() < -200
        voxels[(found.layout == 0).reshape(voxels.shape)] = AIR_HU if is_ct else 0
        copy = SimpleITK.GetImageFromArray(voxels)
        copy.CopyInformation(source)
        SimpleITK.WriteImage(copy, str(folder / file.name), useCompression=True)
    return summarise(case_id, "written", found)
