"""Do images of the pool lie in space as the labelled ones do? A mistake in a header would train on nonsense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own convention

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.raw_images import list_cases
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object

# Pool images this many times finer or coarser than any labelled one are taken for a mistake in the header.
PLAUSIBLE_SPACING_FACTOR = 4.0


@dataclass(frozen=True)
class LabelledGeometry:
    """
    Attributes:
        finest, coarsest: spacing of the labelled cases, mm. Without order: which axis is the slice axis differs between
            scanners' exports.
        num_dimensions: of a labelled image file; None where that cannot be known.
    """

    finest: float
    coarsest: float
    num_dimensions: int | None

    @classmethod
    def of(cls, experiment: Experiment) -> LabelledGeometry:
        labelled = list_cases(experiment.raw_folder / "imagesTr", experiment.file_ending)
        dimensions = next((dimensions_of(files[0]) for files in labelled.values()), None)
        spacings = _without_made_up(_fingerprint_spacings(experiment.preprocessed_folder), dimensions)
        return cls(float(spacings.min()), float(spacings.max()), dimensions)

    def check_dimensions(self, files: Sequence[Path]) -> None:
        """Raise UserError if an image file is 2D where the labelled ones are 3D, 4D, and so on."""
        for file in files:
            own = dimensions_of(file)
            if None not in (own, self.num_dimensions) and own != self.num_dimensions:
                raise UserError(f"{file} is a {own}D image, the labelled ones are {self.num_dimensions}D: "
                                f"{_advice(own, self.num_dimensions)}, or leave it out of imagesUl")

    def check_spacing(self, spacing: Sequence[float], file: Path) -> None:
        """Raise UserError if a spacing is not finite, or far from all labelled ones."""
        spacing = _without_made_up(np.asarray(spacing, dtype=float), self.num_dimensions)
        if not np.all(np.isfinite(spacing)) or spacing.min() < self.finest / PLAUSIBLE_SPACING_FACTOR \
                or spacing.max() > self.coarsest * PLAUSIBLE_SPACING_FACTOR:
            raise UserError(f"{file} has spacing {np.round(spacing, 4).tolist()} mm, the labelled cases "
                            f"{self.finest:.4g} to {self.coarsest:.4g} mm: correct its header, or leave it out of "
                            "imagesUl")


def _fingerprint_spacings(preprocessed: Path) -> np.ndarray:
    """[cases, axes] mm."""
    path, cure = preprocessed / "dataset_fingerprint.json", "run nnUNetv2_extract_fingerprint again"
    fingerprint = read_object(path, cure, cure, "spacings")
    try:
        spacings = np.array(fingerprint["spacings"], dtype=float)
    except (TypeError, ValueError) as error:
        raise UserError(f"\"spacings\" of {path} must be a list of spacings in mm: {cure}") from error
    if spacings.ndim != 2 or not spacings.size or not np.all(np.isfinite(spacings) & (spacings > 0)):
        raise UserError(f"\"spacings\" of {path} must be spacings above 0 mm: {cure}")
    return spacings


def dimensions_of(file: Path) -> int | None:
    """How many axes an image file has, from its header; None where ITK cannot tell."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader.GetDimension()


def _without_made_up(spacings: np.ndarray, num_dimensions: int | None) -> np.ndarray:
    """nnU-Net's reader gives a flat image a slice distance: 999 times the distance of its pixels."""
    return spacings[..., 1:] if num_dimensions == 2 else spacings


def _advice(own: int, labelled: int) -> str:
    if own > labelled:
        return f"save every {'slice' if labelled == 2 else 'volume'} of it as a case of its own"
    return "put its slices into one volume"
