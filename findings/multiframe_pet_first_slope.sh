#!/usr/bin/env bash
# The guess: a PET series, one file a slice, and the same series converted to DICOM's multi-frame form hold the same
#   numbers, so SimpleITK reads the same activity from both.
# What happens: each PET slice has its own rescale slope. From the loose files SimpleITK takes each slice's slope; from
#   the multi-frame file it takes the slope of the first frame for all of them. No error, no warning, a float image that
#   looks plausible. highdicom, reading the same file, gives the right values.
# Why users care: uptake (SUV) is wrong by the ratio of two slopes, differently in each slice; here a true 50, 150, 200,
#   25 becomes 25 everywhere. Enhanced CT and MR with a slope per frame have the same form.
# Seen:
#   highdicom 0.28.2, pydicom 3.0.2, simpleitk 2.5.7, numpy 2.4.6
#   loose files, SimpleITK:      [50.0, 150.0, 200.0, 25.0]
#   multi-frame file, highdicom: [50.0, 150.0, 200.0, 25.0]
#   multi-frame file, SimpleITK: [25.0, 25.0, 25.0, 25.0]
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
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

STUDY, SERIES, FRAME = generate_uid(), generate_uid(), generate_uid()
SLOPES = [0.5, 1.5, 2.0, 0.25]


def pet_slice(number: int) -> Dataset:
    """A uniform slice of stored value 100."""
    pet = Dataset()
    pet.SOPClassUID, pet.SOPInstanceUID = PositronEmissionTomographyImageStorage, generate_uid()
    pet.StudyInstanceUID, pet.SeriesInstanceUID, pet.FrameOfReferenceUID = STUDY, SERIES, FRAME
    pet.PatientName, pet.PatientID, pet.PatientBirthDate, pet.PatientSex = "Phantom^", "1", "", "O"
    pet.StudyDate, pet.StudyTime, pet.StudyID = "20260101", "120000", "1"
    pet.AccessionNumber = pet.ReferringPhysicianName = ""
    pet.SeriesDate = pet.AcquisitionDate = "20260101"
    pet.SeriesTime = pet.AcquisitionTime = "120000"
    pet.Modality, pet.Manufacturer, pet.PositionReferenceIndicator = "PT", "none", ""
    pet.ImageType, pet.SeriesType = ["ORIGINAL", "PRIMARY"], ["STATIC", "IMAGE"]
    pet.Units, pet.CountsSource, pet.DecayCorrection, pet.CorrectedImage = "BQML", "EMISSION", "START", ["ATTN", "DECY"]
    pet.NumberOfSlices, pet.ImageIndex = len(SLOPES), number + 1
    pet.FrameReferenceTime, pet.ActualFrameDuration = 0, 60000
    pet.SeriesNumber, pet.InstanceNumber = 1, number + 1
    pet.ImagePositionPatient, pet.ImageOrientationPatient = [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
    pet.PixelSpacing, pet.SliceThickness = [4, 4], 5
    pet.Rows = pet.Columns = 16
    pet.SamplesPerPixel, pet.PhotometricInterpretation = 1, "MONOCHROME2"
    pet.BitsAllocated, pet.BitsStored, pet.HighBit, pet.PixelRepresentation = 16, 16, 15, 1
    pet.RescaleSlope, pet.RescaleIntercept = SLOPES[number], 0
    pet.PixelData = np.full((16, 16), 100, np.int16).tobytes()
    pet.file_meta = FileMetaDataset()
    pet.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pet.save_as(f"{number}.dcm", enforce_file_format=True)
    return pet


def by_position(image: sitk.Image) -> list[float]:
    """One value a slice, sorted by the slice's z in mm."""
    depth = range(image.GetDepth())
    slices = sorted((image.TransformIndexToPhysicalPoint((0, 0, k))[2], image[0, 0, k]) for k in depth)
    return [float(value) for _, value in slices]


print(*(f"{p} {version(p)}" for p in ("highdicom", "pydicom", "simpleitk", "numpy")), sep=", ")
slices = [pet_slice(k) for k in range(len(SLOPES))]
hd.legacy.LegacyConvertedEnhancedPETImage(slices, generate_uid(), 2, generate_uid(), 1).save_as("multiframe.dcm")
loose = by_position(sitk.ReadImage([f"{k}.dcm" for k in range(len(SLOPES))]))
multiframe = by_position(sitk.ReadImage("multiframe.dcm"))
volume = hd.imread("multiframe.dcm").get_volume()
positions = [volume.map_indices_to_reference(np.array([[k, 0, 0]]))[0, 2] for k in range(len(SLOPES))]
by_highdicom = [float(volume.array[k, 0, 0]) for k in np.argsort(positions)]
print("loose files, SimpleITK:     ", loose)
print("multi-frame file, highdicom:", by_highdicom)
print("multi-frame file, SimpleITK:", multiframe)
true = [50.0, 150.0, 200.0, 25.0]
sys.exit(0 if loose == by_highdicom == true and multiframe == [25.0] * 4 else "the behaviour has changed")
PY
