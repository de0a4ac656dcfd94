#!/usr/bin/env bash
# The guess: a mask written to DICOM RTSTRUCT outlines its pixels, so the outline of 10 x 10 pixels of 1 mm encloses
#   100 mm2. Reading it back with the same library gives exactly the same mask, which seems to prove it.
# What happens: rt-utils draws the outline through the centres of the border pixels: 81 mm2, a fifth less. A lesion of
#   2 x 2 pixels keeps a quarter of its area, and a single pixel becomes a "closed" outline of one point with no area.
#   The way back fills the outline and its border too, which hides the loss from every round-trip test.
# Why users care: a planning system, or any reader that measures the polygon, sees each structure half a pixel smaller
#   on all sides. Volumes shrink, most of all for small lesions, and a comparison of a network's RTSTRUCT with a drawn
#   one is biased.
# Seen:
#   rt-utils 1.2.7, pydicom 3.0.2, opencv-python-headless 5.0.0.93, numpy 2.4.6
#   Writing file to structures.dcm
#    1 x  1 pixels of 1 mm2: 1 point(s) around   0 mm2, read back   1 pixels
#    2 x  2 pixels of 1 mm2: 4 point(s) around   1 mm2, read back   4 pixels
#    5 x  5 pixels of 1 mm2: 4 point(s) around  16 mm2, read back  25 pixels
#   10 x 10 pixels of 1 mm2: 4 point(s) around  81 mm2, read back 100 pixels
#   20 x 20 pixels of 1 mm2: 4 point(s) around 361 mm2, read back 400 pixels
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6 opencv-python-headless==5.0.0.93
venv/bin/pip install --quiet --disable-pip-version-check --no-deps rt-utils==1.2.7
venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rt_utils import RTStructBuilder

STUDY, SERIES, FRAME = generate_uid(), generate_uid(), generate_uid()
WIDTHS = [1, 2, 5, 10, 20]


def write_ct_slice(number: int) -> None:
    ct = Dataset()
    ct.SOPClassUID, ct.SOPInstanceUID = CTImageStorage, generate_uid()
    ct.StudyInstanceUID, ct.SeriesInstanceUID, ct.FrameOfReferenceUID = STUDY, SERIES, FRAME
    ct.PatientName, ct.PatientID, ct.PatientBirthDate, ct.PatientSex = "Phantom^", "1", "", "O"
    ct.StudyDate, ct.StudyTime, ct.StudyID = "20260101", "120000", "1"
    ct.AccessionNumber = ct.ReferringPhysicianName = ""
    ct.Modality, ct.Manufacturer, ct.PositionReferenceIndicator = "CT", "none", ""
    ct.ImageType, ct.KVP, ct.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", "1"
    ct.SeriesNumber, ct.InstanceNumber = 1, number + 1
    ct.ImagePositionPatient, ct.ImageOrientationPatient = [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
    ct.PixelSpacing, ct.SliceThickness = [1, 1], 5
    ct.Rows = ct.Columns = 64
    ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
    ct.BitsAllocated, ct.BitsStored, ct.HighBit, ct.PixelRepresentation = 16, 16, 15, 1
    ct.RescaleSlope, ct.RescaleIntercept = 1, 0
    ct.PixelData = np.zeros((64, 64), np.int16).tobytes()
    ct.file_meta = FileMetaDataset()
    ct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ct.save_as(f"ct/{number}.dcm", enforce_file_format=True)


def enclosed(outline: list) -> float:
    """The area in mm2 of a polygon in a slice, by the shoelace formula; `outline` is x, y, z, x, y, z, ..."""
    x, y, _ = np.array(outline, float).reshape(-1, 3).T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


print(*(f"{p} {version(p)}" for p in ("rt-utils", "pydicom", "opencv-python-headless", "numpy")), sep=", ")
Path("ct").mkdir()
for number in range(4):
    write_ct_slice(number)
written = RTStructBuilder.create_new(dicom_series_path="ct")
for width in WIDTHS:
    mask = np.zeros((64, 64, 4), bool)
    mask[10 : 10 + width, 20 : 20 + width, 2] = True
    written.add_roi(mask=mask, name=str(width))
written.save("structures.dcm")

read = RTStructBuilder.create_from("ct", "structures.dcm")
as_seen = True
for width, structure in zip(WIDTHS, read.ds.ROIContourSequence, strict=True):
    (contour,) = structure.ContourSequence
    area, back = enclosed(contour.ContourData), int(read.get_roi_mask_by_name(str(width)).sum())
    points = len(contour.ContourData) // 3
    print(f"{width:2} x {width:2} pixels of 1 mm2: {points} point(s) around {area:3g} mm2, read back {back:3} pixels")
    as_seen = as_seen and area == (width - 1) ** 2 and back == width**2
sys.exit(0 if as_seen else "the behaviour has changed")
PY
