"""A procedural chest CT, so that everything can be tried and tested without anybody's scan.

`draw_case` makes one scan in Hounsfield units with the exact mask of its lesions and a map of its two lungs;
`write_phantom_dataset` writes many as a normal nnU-Net raw dataset with labelled, unlabelled and test cases.
The anatomy and the disease are in `phantom_chest.py`; here are the scanner, the seeds and the files.

Orientation: DICOM/SimpleITK axes (LPS) with the identity as direction. Arrays are [Z, Y, X]; x grows to the patient's
left, so the left lung is on the right of a picture, y grows to the back, z to the head. (In nibabel's RAS convention
the affine has -1, -1, +1 on its diagonal.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion

from nnunet_synth.atomic import atomic_folder, write_json
from nnunet_synth.data.phantom_chest import (
    LEFT_LUNG,
    RIGHT_LUNG,
    Chest,
    Grid,
    Patient,
    add_distractors,
    add_lesions,
)
from nnunet_synth.errors import UserError
from nnunet_synth.progress import progress

LAYOUT_LABELS = {"left_lung": LEFT_LUNG, "right_lung": RIGHT_LUNG}
LABELS = {"background": 0, "infection": 1}
FIELD_OF_VIEW = 370.0       # mm
LESION_HU = (-725, 100)     # what `segment_by_intensity` takes for a lesion
PARTS = {"Tr": 0, "Ul": 1, "Ts": 2}     # the number is part of a case's seed


@dataclass(frozen=True)
class PhantomSettings:
    """The matrix of a scan.

    Attributes:
        size: rows and columns, ≥ 32.
        num_slices: slices, ≥ 1.
        slice_spacing: mm between slices.
        pixel_spacing: mm between pixels; by default the field of view is 370 mm.
    """

    size: int = 96
    num_slices: int = 12
    slice_spacing: float = 8.0
    pixel_spacing: float | None = None

    def __post_init__(self) -> None:
        if self.size < 32:
            raise UserError(f"a phantom needs at least 32 pixels a side to be recognisable, not {self.size}")
        if self.num_slices < 1:
            raise UserError(f"a phantom needs at least 1 slice, not {self.num_slices}")
        if self.slice_spacing <= 0 or (self.pixel_spacing is not None and self.pixel_spacing <= 0):
            raise UserError("a phantom's spacing is in mm and must be positive")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in mm."""
        pixel = self.pixel_spacing or FIELD_OF_VIEW / self.size
        return self.slice_spacing, pixel, pixel


@dataclass(frozen=True)
class PhantomCase:
    """One scan.

    Attributes:
        image: [Z, Y, X] int16, HU, -1024…3071.
        label: [Z, Y, X] uint8, 1 = lesion; always inside the lungs.
        layout: [Z, Y, X] uint8, 1 = left lung, 2 = right lung, lesions included; pleural fluid is no lung.
        spacing: (z, y, x) in mm.
    """

    image: np.ndarray
    label: np.ndarray
    layout: np.ndarray
    spacing: tuple[float, float, float]


def draw_case(seed: SeedSequence, settings: PhantomSettings | None = None, has_lesions: bool = True) -> PhantomCase:
    """One patient in one scanner: the same seed gives the same case, and without lesions the same anatomy."""
    settings = settings or PhantomSettings()
    anatomy, distractors, lesions, scanner = map(default_rng, _children(seed, 4))
    grid = Grid((settings.num_slices, settings.size, settings.size), settings.spacing,
                centre=tuple(anatomy.uniform([-12, -6, -6], [6, 6, 6])))
    chest = Chest(Patient.draw(anatomy), grid, anatomy)
    add_distractors(chest, distractors)
    label = add_lesions(chest, lesions) if has_lesions else np.zeros(grid.shape, bool)
    return PhantomCase(scan(chest.image, scanner), label.astype(np.uint8), chest.layout, settings.spacing)


def _children(seed: SeedSequence, count: int) -> list[SeedSequence]:
    """As `seed.spawn(count)`, but without the counter that makes a second call answer something else."""
    return [SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i)) for i in range(count)]


def scan(image: np.ndarray, rng: Generator) -> np.ndarray:
    """What a scanner makes of the true densities: its kernel's blur or edge enhancement, shading and correlated noise.

    Args:
        image: float [Z, Y, X] in HU.

    Returns:
        int16 [Z, Y, X] in HU, clipped to -1024…3071.
    """
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < 0.5:      # a smooth (soft-tissue) kernel: blurred picture, coarse and weak noise
        blur = rng.uniform(0.35, 0.75)
        image = gaussian_filter(image, (0, blur, blur))
        noise = gaussian_filter(noise, (0, 0.9, 0.9))
        sigma = rng.uniform(8, 25)
    else:                       # a sharp (lung) kernel: enhanced edges, fine and strong noise
        blurred = gaussian_filter(image, (0, 0.8, 0.8))
        image = image + rng.uniform(0.1, 0.45) * (image - blurred)
        noise = noise - 0.7 * gaussian_filter(noise, (0, 1.0, 1.0))
        sigma = rng.uniform(25, 60)
    rows = np.linspace(-1, 1, image.shape[1], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, image.shape[2], dtype=np.float32)[None]
    thickness = np.clip(1.25 - 0.5 * (rows ** 2 + columns ** 2), 0.6, None)     # more tissue in the way, more noise
    shading = rng.normal(0, 6) * rows + rng.normal(0, 6) * columns + rng.normal(0, 6)
    image = image + sigma / noise.std() * noise * thickness + shading
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def segment_by_intensity(image: np.ndarray, layout: np.ndarray, hu: tuple[float, float] = LESION_HU,
                         blur: float = 0.8) -> np.ndarray:
    """The analytic segmenter: smoothed density in an interval, inside the lungs. It has nothing to learn.

    Used to ask whether synthetic images show the lesions that their labels claim: no training can hide a failure.
    A morphological opening removes what is one pixel thin (vessels, the blurred rim of the lung), a Gaussian the noise;
    both see the lung only.

    Args:
        image: [..., Y, X] in HU.
        layout: [..., Y, X], > 0 in the lungs.
        hu: the interval, HU.
        blur: sigma of the Gaussian in each slice, pixels.

    Returns:
        bool [..., Y, X].
    """
    inside = layout > 0
    in_slice = (1,) * (image.ndim - 2)
    eroded = grey_erosion(np.where(inside, image, np.inf), (*in_slice, 3, 3))
    opened = grey_dilation(np.where(inside, eroded, -np.inf), (*in_slice, 3, 3))
    sigma = (0,) * len(in_slice) + (blur, blur)
    weight = gaussian_filter(inside.astype(np.float32), sigma)
    density = gaussian_filter(np.where(inside, opened, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-6)
    return inside & (density >= hu[0]) & (density <= hu[1])


# The dataset --------------------------------------------------------------------------------------------------------

def write_phantom_dataset(raw_root: str | Path, dataset_id: int, *, num_labelled: int = 20, num_unlabelled: int = 20,
                          num_test: int = 10, size: int = 96, num_slices: int = 12, seed: int = 0,
                          name: str = "ChestPhantom", healthy_fraction: float = 0.15, slice_spacing: float = 8.0,
                          pixel_spacing: float | None = None) -> Path:
    """Write `raw_root/DatasetXXX_Name`: imagesTr, labelsTr, layoutsTr, imagesUl, layoutsUl, imagesTs, labelsTs.

    A case depends on the seed, its part and its number only: with more cases, the first ones stay the same, except for
    which of them are healthy.

    Args:
        raw_root: nnUNet_raw.
        dataset_id: 1…999.
        num_labelled, num_unlabelled, num_test: cases in each part.
        size, num_slices, slice_spacing, pixel_spacing: see `PhantomSettings`.
        seed: of everything.
        healthy_fraction: share of the cases of each part that show no lesion (rounded).

    Returns:
        The dataset's folder; it appears complete or not at all.

    Raises:
        UserError: the id is taken, or a number makes no sense.
    """
    settings = PhantomSettings(size, num_slices, slice_spacing, pixel_spacing)
    counts = {"Tr": num_labelled, "Ul": num_unlabelled, "Ts": num_test}
    if not 1 <= dataset_id <= 999:
        raise UserError(f"dataset id {dataset_id} is not in 1…999: choose another id")
    if num_labelled < 1 or min(counts.values()) < 0:
        raise UserError("a phantom dataset needs at least one labelled case, and no negative numbers of cases")
    if not 0 <= healthy_fraction < 1:
        raise UserError(f"healthy_fraction is a share of the cases in 0…1, not {healthy_fraction}")
    taken = sorted(Path(raw_root).glob(f"Dataset{dataset_id:03d}_*"))
    if taken:
        raise UserError(f"{taken[0]} exists already: choose another dataset id, or remove that folder")

    folder = Path(raw_root) / f"Dataset{dataset_id:03d}_{name}"
    with atomic_folder(folder) as temporary:
        plan = [(part, index, index not in _healthy(seed, part, count, healthy_fraction))
                for part, count in counts.items() for index in range(count)]
        for part, index, has_lesions in progress(plan, "drawing the phantom"):
            case = draw_case(SeedSequence([seed, PARTS[part], index]), settings, has_lesions)
            _write_case(case, temporary, part, f"phantom_{part.lower()}_{index:03d}")
        write_json(_dataset_json(num_labelled, seed), temporary / "dataset.json")
    return folder


def _healthy(seed: int, part: str, count: int, fraction: float) -> set[int]:
    """Which cases of a part have no lesion."""
    rng = default_rng(SeedSequence([seed, PARTS[part], 1_000_000]))
    return set(rng.permutation(count)[:round(fraction * count)].tolist())


def _write_case(case: PhantomCase, folder: Path, part: str, identifier: str) -> None:
    _write_image(case.image, case.spacing, folder / f"images{part}" / f"{identifier}_0000.nii.gz")
    if part != "Ul":
        _write_image(case.label, case.spacing, folder / f"labels{part}" / f"{identifier}.nii.gz")
    if part != "Ts":
        _write_image(case.layout, case.spacing, folder / f"layouts{part}" / f"{identifier}.nii.gz")


def _write_image(array: np.ndarray, spacing: tuple[float, float, float], path: Path) -> None:
    import SimpleITK
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def _dataset_json(num_labelled: int, seed: int) -> dict:
    return {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": num_labelled,
        "file_ending": ".nii.gz",
        "nnunet_synth": {"layout_labels": LAYOUT_LABELS, "source": "procedural phantom", "licence": "CC0",
                         "seed": seed},
    }
