#!/usr/bin/env bash
# The guess: pydicom's apply_modality_lut turns stored values into Hounsfield units, and apply_windowing (or
#   apply_voi_lut) with the soft-tissue window of the file, centre 40 and width 400, then clips them to -160..240, or
#   maps them to 0..255 or 0..1.
# What happens: the window is stretched over the whole range that the file's bits could hold, after rescaling. For 12
#   bits and an intercept of -1024 that is -1024..3071: the result is float, starts at -1024 and looks like Hounsfield
#   units, but liver at 60 HU has become 1234 and fat at -100 HU has become -408. The same patient stored with 16 bits
#   has yet other numbers.
# Why users care: "windowed" arrays are saved as training data, thresholded and averaged as if they were HU: with
#   `> 300` for bone, water is bone. Nothing in the array or its type tells.
# Seen:
#   pydicom 3.0.2, numpy 2.4.6
#                          air     fat   water  muscle   liver    bone
#   12 bits, HU          -1000    -100       0      50      60     700
#   12 bits, windowed    -1024    -408     618    1131    1234    3071
#   16 bits, HU          -1000    -100       0      50      60     700
#   16 bits, windowed    -1024    8831   25256   33468   35111   64511
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

TISSUES = {"air": -1000, "fat": -100, "water": 0, "muscle": 50, "liver": 60, "bone": 700}


def ct_slice(bits: int) -> Dataset:
    """One row of tissues, stored unsigned in `bits` bits with an intercept of -1024."""
    ct = Dataset()
    ct.SOPClassUID, ct.SOPInstanceUID = CTImageStorage, generate_uid()
    ct.StudyInstanceUID, ct.SeriesInstanceUID, ct.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    ct.PatientName, ct.PatientID, ct.PatientBirthDate, ct.PatientSex = "Phantom^", "1", "", "O"
    ct.StudyDate, ct.StudyTime, ct.StudyID = "20260101", "120000", "1"
    ct.AccessionNumber = ct.ReferringPhysicianName = ""
    ct.Modality, ct.Manufacturer, ct.PositionReferenceIndicator = "CT", "none", ""
    ct.ImageType, ct.KVP, ct.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", "1"
    ct.SeriesNumber = ct.InstanceNumber = 1
    ct.ImagePositionPatient, ct.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ct.PixelSpacing, ct.SliceThickness = [1, 1], 5
    ct.Rows, ct.Columns = 1, len(TISSUES)
    ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
    ct.BitsAllocated, ct.BitsStored, ct.HighBit, ct.PixelRepresentation = 16, bits, bits - 1, 0
    ct.RescaleSlope, ct.RescaleIntercept, ct.RescaleType = 1, -1024, "HU"
    ct.WindowCenter, ct.WindowWidth = 40, 400
    ct.PixelData = (np.array(list(TISSUES.values())) + 1024).astype(np.uint16).tobytes()
    ct.file_meta = FileMetaDataset()
    ct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ct


print(*(f"{p} {version(p)}" for p in ("pydicom", "numpy")), sep=", ")
print(f"{'':18}" + "".join(f"{tissue:>8}" for tissue in TISSUES))
windowed = {}
for bits in (12, 16):
    ct = ct_slice(bits)
    hounsfield = apply_modality_lut(ct.pixel_array, ct)
    windowed[bits] = apply_windowing(hounsfield, ct)
    assert np.array_equal(windowed[bits], apply_voi_lut(hounsfield, ct))
    for name, row in ((f"{bits} bits, HU", hounsfield), (f"{bits} bits, windowed", windowed[bits])):
        print(f"{name:18}" + "".join(f"{value:8.0f}" for value in row[0]))
seen = {12: [-1024, -408, 618, 1131, 1234, 3071], 16: [-1024, 8831, 25256, 33468, 35111, 64511]}
as_seen = all(np.round(windowed[bits][0]).tolist() == seen[bits] for bits in seen)
sys.exit(0 if as_seen else "the behaviour has changed")
PY
