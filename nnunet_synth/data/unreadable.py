"""Why a reader refused a file: what its name, its packing or its version is to blame for needs another cure than what
was damaged on the way."""

from __future__ import annotations

from pathlib import Path

from nnunet_synth.data.nifti_header import NiftiHeader, is_gzip
from nnunet_synth.errors import UserError

NIFTI = (".nii.gz", ".nii")
_LOWER_CASE_ONLY = (*NIFTI, ".mha", ".mhd")         # in other formats SimpleITK looks at the content


def unreadable(file: Path, reason: str) -> UserError:
    """The error for `file`, an existing file that its reader gave up for `reason`."""
    cause = misnamed(file) or other_version(file)
    return UserError(f"{file} {cause or f'is truncated, corrupt or no image: copy it again ({reason})'}")


def misnamed(file: Path) -> str:
    """What is wrong with the ending of a medical image, and its cure; "" if nothing is."""
    ending = next((end for end in _LOWER_CASE_ONLY if file.name.lower().endswith(end)), "")
    if not ending:
        return ""
    stem, own = file.name[:-len(ending)], file.name[-len(ending):]
    if own != ending and not (ending in NIFTI and own == ending.upper()):
        return f"ends in {own}, which SimpleITK does not know: rename it to {stem}{ending}"
    if ending in NIFTI and is_gzip(file) != ending.endswith(".gz"):
        if ending == ".nii":
            return f"is compressed, though its name does not say so: rename it to {file.name}.gz"
        return f"is not compressed, though its name says so: rename it to {file.name[:-3]}, or compress it with gzip"
    return ""


def other_version(file: Path) -> str:
    """That a file is NIfTI-2, which SimpleITK does not read."""
    header = NiftiHeader.read(file) if file.name.lower().endswith(NIFTI) else None
    if header is None or header.version != 2:
        return ""
    return ("is NIfTI-2, which SimpleITK does not read: convert it to NIfTI-1, in Python by nibabel.save("
            "nibabel.Nifti1Image.from_image(nibabel.load(OLD)), NEW)")
