#!/usr/bin/env bash
# The guess: a DICOM segmentation says in its own header that its pixels are 0.7 mm wide and its slices 5 mm apart, so
#   SimpleITK reads it with that spacing. If the writer left out the empty slices, perhaps the slice distance suffers,
#   but never the pixel spacing, which stands in one place for all frames.
# What happens: highdicom leaves empty slices out unless it is told not to. Two lesions with a gap between them then
#   lie in frames that are not evenly spaced, and SimpleITK gives up on the whole geometry: 1 x 1 x 1 mm, the order of
#   the slices turned round, no error and not a word. One lesion alone is read rightly, so a pipeline that was tried
#   on such a patient goes wrong at the first patient with two.
# Why users care: the lesion load in mm3 is wrong by the voxel size (here 64 instead of 156.8 mm3), the second lesion
#   lies elsewhere, and a mask resampled onto its scan no longer overlaps it.
# Seen:
#   highdicom 0.28.2, pydicom 3.0.2, simpleitk 2.5.7, numpy 2.4.6
#   one lesion, z 5 to 20 : header [0.7, 0.7, 5.0] mm, SimpleITK (0.7, 0.7, 5.0) mm, z 20 to 5 mm, 156.8 mm3
#   two, z 5, 10, 35, 40  : header [0.7, 0.7, 5.0] mm, SimpleITK (1.0, 1.0, 1.0) mm, z 40 to 43 mm, 64.0 mm3
#   two, empty slices kept: header [0.7, 0.7, 5.0] mm, SimpleITK (0.7, 0.7, 5.0) mm, z 45 to 0 mm, 156.8 mm3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check highdicom==0.28.2 pydicom==3.0.2 SimpleITK==2.5.7 numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version

import highdicom as hd
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STUDY, SERIES, FRAME = generate_uid(), generate_uid(), generate_uid()


def ct_slice(number: int) -> Dataset:
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
    ct.PixelSpacing, ct.SliceThickness = [0.7, 0.7], 5
    ct.Rows = ct.Columns = 16
    ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
    ct.BitsAllocated, ct.BitsStored, ct.HighBit, ct.PixelRepresentation = 16, 16, 15, 1
    ct.RescaleSlope, ct.RescaleIntercept = 1, 0
    ct.PixelData = np.zeros((16, 16), np.int16).tobytes()
    ct.file_meta = FileMetaDataset()
    ct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ct


def written_and_read(name: str, mask: np.ndarray, **options: bool) -> tuple:
    """`mask` (slices, rows, columns) as a DICOM segmentation: its spacing, extent in z and volume by SimpleITK."""
    manual = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    lesion = hd.seg.SegmentDescription(1, "lesion", codes.SCT.Organ, codes.SCT.Liver, manual)
    segmentation = hd.seg.Segmentation(
        slices, mask, "FRACTIONAL", [lesion], generate_uid(), 2, generate_uid(), 1, "none", "none", "1", "1", **options
    )
    segmentation.save_as("seg.dcm")
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    image = sitk.ReadImage("seg.dcm")
    spacing = tuple(round(s, 3) for s in image.GetSpacing())
    volume = round(float((sitk.GetArrayViewFromImage(image) > 0).sum() * np.prod(spacing)), 1)
    depth = [image.TransformIndexToPhysicalPoint((0, 0, k))[2] for k in (0, image.GetDepth() - 1)]
    header = [float(s) for s in (*measures.PixelSpacing, measures.SpacingBetweenSlices)]
    print(f"{name}: header {header} mm, SimpleITK {spacing} mm, z {depth[0]:g} to {depth[1]:g} mm, {volume} mm3")
    return spacing, depth, volume


print(*(f"{p} {version(p)}" for p in ("highdicom", "pydicom", "simpleitk", "numpy")), sep=", ")
slices = [ct_slice(k) for k in range(10)]
two, one = np.zeros((10, 16, 16)), np.zeros((10, 16, 16))
two[1:3, 2:6, 2:6] = two[7:9, 8:12, 8:12] = 1
one[1:5, 2:6, 2:6] = 1
true = (0.7, 0.7, 5.0)
as_seen = (
    written_and_read("one lesion, z 5 to 20 ", one) == (true, [20, 5], 156.8)
    and written_and_read("two, z 5, 10, 35, 40  ", two) == ((1.0, 1.0, 1.0), [40, 43], 64.0)
    and written_and_read("two, empty slices kept", two, omit_empty_frames=False) == (true, [45, 0], 156.8)
)
sys.exit(0 if as_seen else "the behaviour has changed")
PY
