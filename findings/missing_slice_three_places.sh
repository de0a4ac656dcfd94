#!/usr/bin/env bash
# The guess: a CT series with slices 5 mm apart lacks one in the middle. A converter either refuses it, fills the hole,
#   or keeps every slice at the place that its header names.
# What happens: SimpleITK spreads the remaining slices evenly between the first and the last: the spacing becomes
#   5.625 mm and no slice but the two outermost is where it was. dcm2niix writes two files. The one that bears the plain
#   name keeps 5 mm and moves everything behind the hole 5 mm towards it; the right one, with the hole interpolated, is
#   called _Eq_1. Both tools print a warning and succeed.
# Why users care: the same lesion lies at three places and has two volumes, according to who read the series; a mask
#   drawn on one file does not fit the other; and a folder of converted scans holds this patient twice.
# Seen:
#   simpleitk 2.5.7, dcm2niix 1.0.20260724, pydicom 3.0.2, nibabel 5.4.2, numpy 2.4.6
#   dcm2niix: Warning: Interslice distance varies in this volume (incompatible with NIfTI format).
#   true position, mm             0      5     10     15     20     25     30     35     40     45
#   SimpleITK                   0.0  5.625  11.25 16.875      -   22.5 28.125  33.75 39.375   45.0
#   dcm2niix scan.nii           0.0    5.0   10.0   15.0      -   20.0   25.0   30.0   35.0   40.0
#   dcm2niix scan_Eq_1.nii      0.0    5.0   10.0   15.0   20.0   25.0   30.0   35.0   40.0   45.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pydicom==3.0.2 SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.4.6 \
  dcm2niix==1.0.20260724
venv/bin/python - <<'PY'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STUDY, SERIES, FRAME = generate_uid(), generate_uid(), generate_uid()
POSITIONS = [0, 5, 10, 15, 25, 30, 35, 40, 45]  # mm; 20 is missing


def write_ct_slice(z: int) -> None:
    """A uniform slice whose value is its position in mm."""
    ct = Dataset()
    ct.SOPClassUID, ct.SOPInstanceUID = CTImageStorage, generate_uid()
    ct.StudyInstanceUID, ct.SeriesInstanceUID, ct.FrameOfReferenceUID = STUDY, SERIES, FRAME
    ct.PatientName, ct.PatientID, ct.PatientBirthDate, ct.PatientSex = "Phantom^", "1", "", "O"
    ct.StudyDate, ct.StudyTime, ct.StudyID = "20260101", "120000", "1"
    ct.AccessionNumber = ct.ReferringPhysicianName = ""
    ct.Modality, ct.Manufacturer, ct.PositionReferenceIndicator, ct.PatientPosition = "CT", "none", "", "HFS"
    ct.ImageType, ct.KVP, ct.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", "1"
    ct.SeriesNumber, ct.InstanceNumber = 1, z // 5 + 1
    ct.ImagePositionPatient, ct.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    ct.PixelSpacing, ct.SliceThickness = [1, 1], 5
    ct.Rows = ct.Columns = 16
    ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
    ct.BitsAllocated, ct.BitsStored, ct.HighBit, ct.PixelRepresentation = 16, 16, 15, 1
    ct.RescaleSlope, ct.RescaleIntercept = 1, 0
    ct.PixelData = np.full((16, 16), z, np.int16).tobytes()
    ct.file_meta = FileMetaDataset()
    ct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ct.save_as(f"ct/{z:02}.dcm", enforce_file_format=True)


def of_itk(image: sitk.Image) -> dict[int, float]:
    """True position of each slice (its value) -> where the image puts it, both in mm."""
    slices = range(image.GetDepth())
    return {int(image[0, 0, k]): image.TransformIndexToPhysicalPoint((0, 0, k))[2] for k in slices}


def of_nifti(path: str) -> dict[int, float]:
    image = nib.load(path)
    values = image.get_fdata()[0, 0]
    return {round(v): round(float((image.affine @ [0, 0, k, 1])[2]), 3) for k, v in enumerate(values)}


print(*(f"{p} {version(p)}" for p in ("simpleitk", "dcm2niix", "pydicom", "nibabel", "numpy")), sep=", ")
Path("ct").mkdir()
for z in POSITIONS:
    write_ct_slice(z)
command = ["venv/bin/dcm2niix", "-b", "n", "-f", "scan", "-o", ".", "ct"]
told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
print("dcm2niix:", *(line for line in told if "Interslice" in line))
placed = {
    "SimpleITK": of_itk(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames("ct"))),
    "dcm2niix scan.nii": of_nifti("scan.nii"),
    "dcm2niix scan_Eq_1.nii": of_nifti("scan_Eq_1.nii"),
}
print(f"{'true position, mm':24}" + "".join(f"{z:7}" for z in range(0, 50, 5)))
for name, where in placed.items():
    print(f"{name:24}" + "".join(f"{where.get(z, '-'):>7}" for z in range(0, 50, 5)))
as_seen = (
    placed["SimpleITK"] == {z: 5.625 * k for k, z in enumerate(POSITIONS)}
    and placed["dcm2niix scan.nii"] == {z: 5.0 * k for k, z in enumerate(POSITIONS)}
    and placed["dcm2niix scan_Eq_1.nii"] == {z: z for z in range(0, 50, 5)}
)
sys.exit(0 if as_seen else "the behaviour has changed")
PY
