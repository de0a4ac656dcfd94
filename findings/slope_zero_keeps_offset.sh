#!/usr/bin/env bash
# The guess: NIfTI says that a header with scl_slope = 0 has no scaling: the stored numbers are the values, and
#   scl_inter counts for nothing. Two established readers agree on so plain a rule.
# What happens: with scl_slope = 0 and scl_inter = -1024 nibabel follows the rule and gives the stored numbers;
#   SimpleITK takes the slope for 1 and still adds the offset. With scl_slope = 1 both add it, with 0 and 0 both do not.
# Why users care: a CT in Hounsfield units is 1024 HU too low for one reader of a pipeline and right for the other.
#   nnU-Net has a reader of each kind: which of them a data set was planned with decides what its numbers mean.
# Seen:
#   nibabel 5.4.2, simpleitk 2.5.7, numpy 2.4.6
#   stored: [-1000, 40, 700]
#   scl_slope 0, scl_inter     0: nibabel [-1000.0, 40.0, 700.0], SimpleITK [-1000, 40, 700]
#   scl_slope 1, scl_inter -1024: nibabel [-2024.0, -984.0, -324.0], SimpleITK [-2024.0, -984.0, -324.0]
#   scl_slope 0, scl_inter -1024: nibabel [-1000.0, 40.0, 700.0], SimpleITK [-2024.0, -984.0, -324.0]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
venv/bin/python - <<'PY'
import struct
import sys
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

SCL_SLOPE_AT = 112  # bytes from the start of a NIfTI-1 header; scl_inter follows

print(*(f"{p} {version(p)}" for p in ("nibabel", "simpleitk", "numpy")), sep=", ")
stored = np.zeros((4, 4, 4), np.int16)
stored[0, 0, :3] = -1000, 40, 700
nib.save(nib.Nifti1Image(stored, np.eye(4)), "ct.nii")
plain = Path("ct.nii").read_bytes()


def read_with(slope: float, offset: float) -> tuple[list[float], list[float]]:
    header = bytearray(plain)
    struct.pack_into("<ff", header, SCL_SLOPE_AT, slope, offset)
    Path("scaled.nii").write_bytes(header)
    by_nibabel = nib.load("scaled.nii").get_fdata()[0, 0, :3].tolist()
    by_sitk = sitk.GetArrayFromImage(sitk.ReadImage("scaled.nii")).T[0, 0, :3].tolist()
    print(f"scl_slope {slope:g}, scl_inter {offset:5g}: nibabel {by_nibabel}, SimpleITK {by_sitk}")
    return by_nibabel, by_sitk


print("stored:", stored[0, 0, :3].tolist())
as_it_is, lowered = [-1000, 40, 700], [-2024, -984, -324]
as_seen = (
    read_with(0, 0) == (as_it_is, as_it_is)
    and read_with(1, -1024) == (lowered, lowered)
    and read_with(0, -1024) == (as_it_is, lowered)
)
sys.exit(0 if as_seen else "the behaviour has changed")
PY
