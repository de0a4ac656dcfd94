"""The voxels of a DICOM series in HU, as one LPS image."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.dataset_conversion.dicom_header import Slice, SliceHeader
from nnunet_synth.dataset_conversion.dicom_pixels import decodable
from nnunet_synth.dataset_conversion.dicom_series import (
    DUPLICATE,
    Series,
    is_regular,
    position_tolerance,
    slice_axes,
    slice_heights,
    sorted_slices,
)
from nnunet_synth.dataset_conversion.volumes import fits_int16, to_lps, turned
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

PADDING_HU = -1024              # what scanners write where nothing was reconstructed
_MAX_HU = 32767                 # extended CT numbers end at 31743; beyond, sign or padding were misread


def read_series(series: Series) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    """Read a series that passed `check_series`.

    Slope and intercept are applied slice by slice. Pixels outside the reconstructed circle become -1024 HU, whether
    their value is declared (PixelPaddingValue) or not (-2000 or -2048 in the corners). Slices with gaps are
    interpolated linearly to a regular spacing.

    Returns:
        The LPS image in HU, int16, or float32 where a slope makes fractions; and what was changed, for the report.

    Raises:
        UserError: a file is truncated, corrupt, or not what its header says.
    """
    import SimpleITK
    slices = sorted_slices(series.slices)
    voxels, num_padded = _stack(slices)
    repairs = [f"{number} {DUPLICATE}(s) dropped" if reason == DUPLICATE else
               f"{number} stray image(s) dropped: {reason}"
               for reason, number in Counter(one.reason for one in series.dropped).items()]
    if num_padded:
        repairs.append(f"padding set to {PADDING_HU} HU")
    spacing, heights = series.slice_spacing, slice_heights(series.slices)
    if not is_regular(heights):
        voxels, spacing, added = _fill_gaps(voxels, heights)
        repairs.append(f"{added} slice(s) interpolated to a regular spacing of {spacing:.2f} mm")
    image = SimpleITK.GetImageFromArray(voxels)
    between_rows, between_columns = series.header.pixel_spacing
    image.SetSpacing((between_columns, between_rows, spacing))
    image.SetOrigin(slices[0].header.position)
    image.SetDirection(slice_axes(series).T.ravel().tolist())
    return to_lps(image), (*repairs, *turned(image))


def _stack(slices: list[Slice]) -> tuple[np.ndarray, int]:
    """The slices in HU, [Z, Y, X] int16 or float32, and how many of their pixels were padding."""
    voxels = np.empty((len(slices), *slices[0].header.shape), np.int16)
    num_padded = 0
    for index, one in enumerate(slices):
        hu = _read_hu(one)
        padding = _padding(hu, one.header)
        num_padded += int(padding.sum())
        hu[padding] = PADDING_HU
        if voxels.dtype == np.int16 and not fits_int16(hu):
            voxels = voxels.astype(np.float32)
        voxels[index] = hu
    return voxels, num_padded


def _read_hu(one: Slice) -> np.ndarray:
    """One slice [Y, X] as GDCM rescales it, integers or float64."""
    import SimpleITK
    with decodable(one.file) as path:
        try:
            image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
        except RuntimeError as error:
            raise UserError(f"{one.file} is truncated or corrupt: copy it again") from error
    pixels = SimpleITK.GetArrayFromImage(image)
    if pixels.shape != (1, *one.header.shape):
        raise UserError(f"{one.file} holds pixels of shape {pixels.shape}, its header says {one.header.shape}")
    return pixels[0]


def _padding(hu: np.ndarray, header: SliceHeader) -> np.ndarray:
    """Where a slice [Y, X] shows nothing but padding; raises UserError for values that are no CT numbers."""
    from scipy.ndimage import binary_propagation
    mask = np.zeros(hu.shape, bool)
    if header.padding is not None:
        low, high = (header.slope * value + header.intercept for value in header.padding)
        mask = (hu > low - header.slope / 2) & (hu < high + header.slope / 2)
        if high > PADDING_HU:               # tissue may have this value, too: only what reaches the rim is padding
            rim = np.ones(hu.shape, bool)
            rim[1:-1, 1:-1] = False
            mask = binary_propagation(rim & mask, mask=mask)
    lowest = hu.min()
    if lowest < PADDING_HU and lowest in hu[[0, 0, -1, -1], [0, -1, 0, -1]]:
        mask |= hu == lowest
    highest = hu[~mask].max(initial=PADDING_HU)
    if highest > _MAX_HU:
        raise UserError(f"values up to {highest:.0f} HU: sign or padding of the pixels are not what the header says")
    return mask


def _fill_gaps(voxels: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, float, int]:
    """Slices at irregular heights (mm) linearly interpolated to a regular grid.

    Returns:
        The voxels [Z, Y, X] in the same type, their spacing in mm, and how many slices were not there before.
    """
    num = round((heights[-1] - heights[0]) / float(np.median(np.diff(heights)))) + 1
    grid, spacing = np.linspace(heights[0], heights[-1], num, retstep=True)
    filled = np.empty((num, *voxels.shape[1:]), voxels.dtype)
    added = 0
    for index, height in enumerate(grid):
        above = int(np.clip(np.searchsorted(heights, height), 1, len(heights) - 1))
        share = (height - heights[above - 1]) / (heights[above] - heights[above - 1])
        nearest = above if share > 0.5 else above - 1
        if abs(heights[nearest] - height) <= position_tolerance(spacing):
            filled[index] = voxels[nearest]
            continue
        mixed = (1 - share) * voxels[above - 1] + share * voxels[above]
        filled[index] = np.rint(mixed) if voxels.dtype.kind == "i" else mixed
        added += 1
    return filled, float(spacing), added
