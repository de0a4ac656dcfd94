"""Whether a DICOM series is one axial CT volume on a regular grid; if not, why."""

from __future__ import annotations

import numpy as np

from nnunet_synth.dataset_conversion.dicom_header import PixelBits, SliceHeader
from nnunet_synth.dataset_conversion.dicom_series import (
    Series,
    is_regular,
    position_tolerance,
    slice_axes,
    slice_heights,
    sorted_slices,
)

# A chest is 200 mm high or more, and 10 mm are the thickest slices in use. Scouts have one or two, bolus tracking a
# few at one height.
MIN_SLICES = 20

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_NO_SCAN_WORDS = {"LOCALIZER": "a scout (localizer), no scan", "SCOUT": "a scout, no scan",
                  "TOPOGRAM": "a scout (topogram), no scan", "MIP": "a projection (MIP), no CT numbers",
                  "MINIP": "a projection (MinIP), no CT numbers", "IP": "a projection, no CT numbers"}
# Defined terms of Rescale Type that are not Hounsfield units (PS3.3 C.11.1.1.2); free text is "HU" in other words.
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}
# What GDCM decodes: uncompressed, deflated, RLE, JPEG (8 and 12 bits, lossless), JPEG-LS, JPEG 2000.
_GDCM_READS = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
               "1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))}

ORIENTATION_TOLERANCE = 1e-3   # of direction cosines: 0.06 degrees, half a pixel at the rim of the picture
_SPACING_TOLERANCE = 1e-3       # mm
_MAX_OBLIQUITY = 15.0           # degrees between the slices' normal and the body's axis: a patient lies askew
_MAX_TILT = 0.5                 # degrees
_SAME_PLACE = 0.01              # mm between two slices


def check_series(series: Series, min_slices: int = MIN_SLICES, allow_gaps: bool = False) -> str | None:
    """Why a series is no axial CT volume on a regular grid; None if it is one.

    Args:
        min_slices: with fewer it is no scan of a chest.
        allow_gaps: accept irregular spacing and missing slices, which `read_series` then fills.
    """
    if series.defect or not series.slices:
        return series.defect or "no slices"
    return (_wrong_kind(series) or _incomplete_header(series) or _mixed(series) or _wrong_plane(series)
            or _tilted(series) or _too_few(series, min_slices) or _irregular(series, allow_gaps))


def _wrong_kind(series: Series) -> str | None:
    for header in (one.header for one in series.slices):
        if reason := why_no_slice(header):
            return reason
        if header.transfer_syntax not in _GDCM_READS:
            return f"compressed as {_uid_name(header.transfer_syntax)}, which cannot be read: decompress it first"
        if header.photometric != "MONOCHROME2":
            return f"photometric interpretation {header.photometric or 'not given'}, not MONOCHROME2"
        if header.unit.upper() in _OTHER_UNITS:
            return f"values in {header.unit}, not in HU"
        if reason := _odd_bits(header.bits):
            return reason
    return None


def why_no_slice(header: SliceHeader) -> str | None:
    """Why an image is no slice of a CT scan, whatever its pixels are; None if it is one."""
    if header.modality != "CT":
        return f"modality {header.modality or 'not given'}, not CT"
    if header.num_frames > 1 or header.sop_class.startswith((f"{_CT_IMAGE_STORAGE}.1", f"{_CT_IMAGE_STORAGE}.2")):
        return ("multi-frame (enhanced) DICOM, each frame with a place and a slope of its own: convert it to one slice "
                "a file (for example by dcm4che's emf2sf)")
    if header.sop_class != _CT_IMAGE_STORAGE:
        return f"no CT image but {_uid_name(header.sop_class)}"
    return next((reason for word, reason in _NO_SCAN_WORDS.items() if word in header.image_type), None)


def _odd_bits(bits: PixelBits) -> str | None:
    """GDCM and pydicom take values to lie in the lowest bits, whatever HighBit says; other places are refused.

    A header that says otherwise may be right or wrong, and values differ by a factor of 2^(HighBit + 1 - BitsStored).
    """
    if None in (bits.allocated, bits.stored, bits.high, bits.signed):
        return "the header does not say how the pixels' bits lie (BitsAllocated, BitsStored, HighBit, " \
            "PixelRepresentation)"
    said = f"{bits.stored} of {bits.allocated} bits stored"
    if bits.high != bits.stored - 1:
        return (f"{said}, the highest of them bit {bits.high} and not {bits.stored - 1}: where the values lie is not "
                "sure, export it again")
    if not (0 < bits.stored <= bits.allocated == 16 or bits.stored == bits.allocated in (8, 32)):
        return f"{said}, which cannot be read: export it again with 16 bits"
    return None


def _uid_name(uid: str) -> str:
    from pydicom.uid import UID
    name = UID(uid).name
    return name if name != uid else "an unknown kind"       # never a UID in a message


def _incomplete_header(series: Series) -> str | None:
    headers = [one.header for one in series.slices]
    odd = [header.not_a_number for header in headers if header.not_a_number]
    if odd:
        return f"{len(odd)} of {len(headers)} slices: {odd[0]}: correct the headers, or export the scan again"
    for name in ("position", "orientation", "pixel_spacing"):
        missing = sum(getattr(header, name) is None for header in headers)
        if missing:
            return f"{missing} of {len(headers)} slices have no {name.replace('_', ' ')}"
    if any(header.intercept is None or not header.slope or header.slope < 0 for header in headers):
        return "no (or an impossible) rescale slope and intercept: its values are not known to be HU"
    if any(min(header.shape) < 1 or min(header.pixel_spacing) <= 0 for header in headers):
        return "a size or a pixel spacing of zero"
    if len(headers) == 1 and series.slice_spacing <= 0:
        return "one slice without thickness and spacing"
    return None


def _mixed(series: Series) -> str | None:
    headers = [one.header for one in series.slices]
    shapes = {header.shape for header in headers}
    if len(shapes) > 1:
        return f"mixed sizes in one series: {' and '.join(f'{rows} x {columns}' for rows, columns in sorted(shapes))}"
    for name, tolerance in (("orientation", ORIENTATION_TOLERANCE), ("pixel_spacing", _SPACING_TOLERANCE)):
        values = np.array([getattr(header, name) for header in headers])
        if np.abs(values - values[0]).max() > tolerance:
            return f"mixed {name.replace('_', ' ')}s in one series"
    return None


def _wrong_plane(series: Series) -> str | None:
    row, column = np.array(series.header.orientation).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if np.abs(np.subtract(lengths, 1)).max() > 0.01 or abs(row @ column) > 0.01:
        return "orientation is not two perpendicular unit vectors"
    normal = np.cross(row, column)
    plane = ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
    if plane != "axial":
        return f"{plane}, not axial"
    angle = float(np.degrees(np.arccos(min(1.0, abs(normal[2]) / np.linalg.norm(normal)))))
    return f"oblique by {angle:.0f} degrees, not axial" if angle > _MAX_OBLIQUITY else None


def _tilted(series: Series) -> str | None:
    """Slices that are shifted against each other, or a tilt in the header that their orientation does not show."""
    slices = sorted_slices(series.slices)
    positions = np.array([one.header.position for one in slices])
    normal = slice_axes(series)[2]
    moved = positions - positions[0]
    along = moved @ normal
    shift = np.linalg.norm(moved - along[:, None] * normal, axis=1)
    if shift.max() > min(series.header.pixel_spacing) / 2:
        worst = int(shift.argmax())
        angle = np.degrees(np.arctan2(shift[worst], abs(along[worst])))
        return (f"gantry tilt of {angle:.1f} degrees or shifted slices: they move {shift[worst]:.1f} mm sideways over "
                f"{abs(along[worst]):.1f} mm")
    tilt = max((one.header.tilt for one in slices), key=abs)
    declared = float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))
    if abs(tilt) > _MAX_TILT and abs(abs(tilt) - declared) > _MAX_TILT:
        return f"gantry tilt of {tilt:.1f} degrees, while positions and orientation show none"
    return None


def _too_few(series: Series, min_slices: int) -> str | None:
    number = len(series.slices)
    return f"{number} slice(s), fewer than {min_slices} (--min-slices)" if number < min_slices else None


def _irregular(series: Series, allow_gaps: bool) -> str | None:
    heights = slice_heights(series.slices)
    steps = np.diff(heights)
    if not steps.size:
        return None
    same = int((steps < _SAME_PLACE).sum())
    if same:
        return f"{same} slice(s) lie where another one lies: several acquisitions in one series"
    if allow_gaps or is_regular(heights):
        return None
    usual = float(np.median(steps))
    multiples = np.rint(steps / usual)
    missing, places = int((multiples - 1).sum()), int((multiples > 1).sum())
    if missing and np.abs(steps - multiples * usual).max() <= position_tolerance(usual):
        return f"{missing} slice(s) missing at {places} place(s), spacing {usual:.2f} mm (--allow-gaps fills them)"
    return f"irregular spacing, {steps.min():.2f} to {steps.max():.2f} mm between slices (--allow-gaps resamples them)"
