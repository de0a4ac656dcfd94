#!/usr/bin/env bash
# The guess: a mask of zeros and ones, saved beside its CT with nibabel.Nifti1Image(mask, ct.affine, ct.header), comes
#   back as zeros and ones, for whoever reads it.
# What happens: the mask was computed, so it is float; the header is the CT's, so the file is int16. nibabel does not
#   store 0 and 1: it stretches the mask over the whole int16 range and writes a slope and an intercept to undo it. These
#   are rounded to float32, so 1 comes back as 0.9999999998. Read by nibabel, `== 1` finds no voxel and `astype(int)`
#   makes an empty mask; read by SimpleITK, the same file holds exactly 1. With labels 0 to 4, `astype(int)` makes
#   label 3 a 2 in both, and label 4 a 3 in nibabel only.
# Why users care: Dice against the very same mask is 0 in a script built on nibabel and 1 in one built on SimpleITK;
#   with several organs one is counted as its neighbour. Nothing warns.
# Seen:
#   nibabel 5.4.2, simpleitk 2.5.7, numpy 2.4.6
#   one label, largest value:  nibabel 0.9999999997671694  SimpleITK 1.0
#   Dice against itself (== 1, astype(int)):  nibabel [0.0, 0.0]  SimpleITK [1.0, 1.0]
#   64 voxels each of labels 1 to 4, counted after astype(int):
#     nibabel {0: 256, 1: 64, 2: 128, 3: 64}  SimpleITK {0: 256, 1: 64, 2: 128, 4: 64}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
from importlib.metadata import version

import nibabel as nib
import numpy as np
import SimpleITK as sitk

print(*(f"{p} {version(p)}" for p in ("nibabel", "simpleitk", "numpy")), sep=", ")
nib.save(nib.Nifti1Image(np.full((8, 8, 8), -1000, np.int16), np.eye(4)), "ct.nii.gz")
ct = nib.load("ct.nii.gz")


def saved_beside_the_ct(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same file as nibabel and as SimpleITK read it."""
    nib.save(nib.Nifti1Image(labels, ct.affine, ct.header), "mask.nii.gz")
    return nib.load("mask.nii.gz").get_fdata(), sitk.GetArrayFromImage(sitk.ReadImage("mask.nii.gz")).T


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


mask = np.zeros((8, 8, 8))
mask[2:6, 2:6, 2:6] = 1
by_nibabel, by_sitk = saved_beside_the_ct(mask)
print("one label, largest value:  nibabel", repr(float(by_nibabel.max())), " SimpleITK", repr(float(by_sitk.max())))
scores = [[dice(m, mask == 1) for m in (read == 1, read.astype(int) == 1)] for read in (by_nibabel, by_sitk)]
print("Dice against itself (== 1, astype(int)):  nibabel", scores[0], " SimpleITK", scores[1])

organs = np.zeros((8, 8, 8))
organs[0], organs[2], organs[4], organs[6] = 1, 2, 3, 4
truncated = [np.unique(read.astype(int), return_counts=True) for read in saved_beside_the_ct(organs)]
counts = [dict(zip(values.tolist(), n.tolist(), strict=True)) for values, n in truncated]
print("64 voxels each of labels 1 to 4, counted after astype(int):")
print("  nibabel", counts[0], " SimpleITK", counts[1])

seen = [{0: 256, 1: 64, 2: 128, 3: 64}, {0: 256, 1: 64, 2: 128, 4: 64}]
as_seen = scores == [[0.0, 0.0], [1.0, 1.0]] and counts == seen
sys.exit(0 if as_seen else "the behaviour has changed")
PY
