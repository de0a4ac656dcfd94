"""Which series of a CT study is taken: one axial volume, by a rule that gives the same answer every time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from nnunet_synth.dataset_conversion.dicom_checks import check_series
from nnunet_synth.dataset_conversion.dicom_series import Series

Kernel = Literal["soft", "unknown", "sharp"]

_SOFT_WORDS = {"STANDARD", "SOFT", "SMOOTH", "CHST", "CHEST", "BODY", "MEDIASTINUM"}
_SHARP_WORDS = {"LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA", "SHARP", "DETAIL", "HRCT"}


def kernel_kind(kernel: str) -> Kernel:
    """Whether a reconstruction kernel is for soft tissue or sharp (lung, bone), by the makers' names.

    GE has words (STANDARD, LUNG, BONEPLUS). Siemens has letters and a number that grows with sharpness, B10 to B80,
    I26 to I80, Br32, Bl57, Qr40: from 50 on they are for lung and bone. Canon and Toshiba have FC01 to FC19 for the
    body, FC20 to FC29 for the head, and sharper ones from FC30 on. Philips has A, B, C for soft tissue and D, E, L, Y…
    for sharp pictures.
    """
    name = kernel.upper().strip()
    words = set(re.findall(r"[A-Z]+", name))
    if words & _SHARP_WORDS:
        return "sharp"
    if words & _SOFT_WORDS:
        return "soft"
    if found := re.match(r"FC\s?(\d\d)", name):
        return "soft" if int(found[1]) < 30 else "sharp"
    if found := re.match(r"[BIQHJTSU][A-Z]?(\d\d)", name):
        return "soft" if int(found[1]) < 50 else "sharp"
    if re.fullmatch(r"[ABC]", name):
        return "soft"
    if re.fullmatch(r"[DEL]|Y[A-Z]?", name):
        return "sharp"
    return "unknown"


class NotTaken(NamedTuple):
    """A series that was left, and why."""

    series: Series
    reason: str


def rank_series(series: Sequence[Series], min_slices: int, allow_gaps: bool) -> tuple[list[Series], list[NotTaken]]:
    """The series that are axial CT volumes, the best first, and the others with their reasons.

    The thinnest one is best (slice thickness or spacing, whichever is larger, to a tenth of a millimetre); then a
    soft-tissue kernel, since sharp ones are noisy; then the scanner's own slices before reformatted ones; then the one
    that covers more of the body; then the smaller UID.
    """
    usable, refused = [], []
    for one in series:
        reason = check_series(one, min_slices, allow_gaps)
        if reason is None:
            usable.append(one)
        else:
            refused.append(NotTaken(one, reason))
    return sorted(usable, key=_preference), refused


def why_behind(other: Series, taken: Series) -> str:
    """Why `rank_series` puts one usable series behind another."""
    names = ("thicker", "sharper kernel", "reformatted", "covers less", "as good, but of a later UID")
    name = next(name for name, own, best in zip(names, _preference(other), _preference(taken), strict=True)
                if own != best)
    return f"usable, but {name}"


def effective_thickness(series: Series) -> float:
    """mm that one slice stands for: its thickness, or the spacing where that is larger."""
    return max(series.header.thickness or 0.0, series.slice_spacing)


def _preference(series: Series) -> tuple[float, int, bool, float, str]:
    kernel = ("soft", "unknown", "sharp").index(kernel_kind(series.header.kernel))
    covered = round(series.slice_spacing * len(series.slices))
    return round(effective_thickness(series), 1), kernel, not series.is_original, -covered, series.uid
