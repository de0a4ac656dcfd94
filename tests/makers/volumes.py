"""Phantom chest CTs as files in any axis order."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_synth.data.phantom import PhantomCase, PhantomSettings, draw_case

NUM_PHANTOMS = 4        # different patients in a test copy: drawing them is what takes the time


@lru_cache(maxsize=16)
def phantom(seed: int, size: int = 64, num_slices: int = 24, slice_spacing: float = 12.0) -> PhantomCase:
    """A patient with lesions; drawn once in a test run, so do not write into its arrays."""
    return draw_case(np.random.SeedSequence([2020, seed]), PhantomSettings(size, num_slices, slice_spacing))


def patient(index: int, size: int = 64, num_slices: int = 24) -> PhantomCase:
    """One of the phantoms, with one voxel of its own: no two patients have the same scan."""
    case = phantom(index % NUM_PHANTOMS, size, num_slices)
    image = case.image.copy()
    image[0, 0, 0] += index // NUM_PHANTOMS
    return replace(case, image=image)


def write_volume(array: np.ndarray, spacing: tuple[float, ...], path: Path, axes: str = "LPS",
                 origin: tuple[float, float, float] = (-185.0, -170.5, -962.25)) -> None:
    """Write an LPS array [z, y, x] with its spacing (z, y, x) so that the file's axes are `axes`.

    The physical point of every voxel stays the same, whatever the axes.
    """
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, axes), str(path), useCompression=True)
