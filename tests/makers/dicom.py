"""CT series as scanners write them, one slice a file, and everything that can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = ((1, 0, 0), (0, 1, 0))              # where the column and the row index grow to, in LPS
CORONAL = ((1, 0, 0), (0, 0, -1))
SAGITTAL = ((0, 1, 0), (0, 0, -1))
PATIENT = {"PatientName": "Muster^Erika", "PatientID": "Covid0042", "PatientBirthDate": "19511103",
           "PatientSex": "F", "PatientAge": "068Y"}


def uid(*parts: object) -> str:
    """The same UID for the same parts."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


@dataclass(frozen=True)
class CTSeries:
    """A volume and how it is written.

    Attributes:
        hu: [slice, row, column]; HU minus intercept, over slope, must be integers that the pixels can hold.
        spacing: mm between slices, rows, columns.
        origin: mm, LPS, first pixel of the first slice.
        orientation: direction cosines of a row, then of a column; slices follow their cross product.
        heights: mm along it, where the slices are not regular.
        study, series: parts of their UIDs.
        slope, intercept: of each slice.
        signed: pixel representation.
        padding: stored value outside the reconstructed circle; None: the circle is not drawn.
        declares_padding: whether the header names it.
        instances: InstanceNumber of each slice; 1, 2, … if not given.
        patient: the patient's tags.
        edit: called with each data set and the slice's index before it is written.
    """

    hu: NDArray
    spacing: tuple[float, float, float] = (5.0, 0.75, 0.7)
    origin: tuple[float, float, float] = (-20.5, -31.25, 112.75)
    orientation: tuple[Sequence[float], Sequence[float]] = AXIAL
    heights: Sequence[float] | None = None
    study: str = "study"
    series: str = "series"
    kernel: str = "STANDARD"
    slope: Callable[[int], float] = lambda index: 1
    intercept: Callable[[int], float] = lambda index: -1024
    signed: bool = True
    padding: int | None = None
    declares_padding: bool = True
    instances: Sequence[int] | None = None
    patient: dict[str, str] = field(default_factory=lambda: dict(PATIENT))
    edit: Callable[[Dataset, int], None] = lambda dataset, index: None

    @property
    def uid(self) -> str:
        return uid(self.series)

    def position(self, index: int) -> NDArray:
        """mm, LPS, of the first pixel of a slice."""
        height = index * self.spacing[0] if self.heights is None else self.heights[index]
        return np.array(self.origin) + height * np.cross(*self.orientation)

    def affine(self) -> NDArray:
        """From (column, row, slice) indices to LPS mm, [4, 4], for regular slices."""
        affine = np.eye(4)
        affine[:3, 0] = np.array(self.orientation[0]) * self.spacing[2]
        affine[:3, 1] = np.array(self.orientation[1]) * self.spacing[1]
        affine[:3, 2] = np.cross(*self.orientation) * self.spacing[0]
        affine[:3, 3] = self.origin
        return affine

    def outside(self) -> NDArray:
        """Outside the circle that scanners reconstruct, [row, column]."""
        rows, columns = self.hu.shape[1:]
        y, x = np.mgrid[0:rows, 0:columns]
        return ((2 * y + 1) / rows - 1) ** 2 + ((2 * x + 1) / columns - 1) ** 2 > 1

    def dataset(self, index: int) -> Dataset:
        """One slice as CT Image Storage."""
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = uid(self.series, index)
        for keyword, value in self.patient.items():
            setattr(one, keyword, value)
        one.StudyInstanceUID, one.SeriesInstanceUID = uid(self.study), self.uid
        one.StudyDate, one.AccessionNumber, one.InstitutionName = "20200412", "ACC4711", "General Hospital"
        one.Modality, one.Manufacturer, one.ImageType = "CT", "phantom", ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ConvolutionKernel, one.SliceThickness = self.kernel, self.spacing[0]
        one.InstanceNumber = index + 1 if self.instances is None else self.instances[index]
        one.ImagePositionPatient = [round(float(mm), 4) for mm in self.position(index)]
        one.ImageOrientationPatient = [round(float(cosine), 6) for axis in self.orientation for cosine in axis]
        one.PixelSpacing = list(self.spacing[1:])
        one.GantryDetectorTilt = 0
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = self.slope(index), self.intercept(index), "HU"
        one.Rows, one.Columns = self.hu.shape[1:]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, int(self.signed)
        stored = np.rint((self.hu[index] - one.RescaleIntercept) / one.RescaleSlope).astype(int)
        if self.padding is not None:
            stored[self.outside()] = self.padding
            if self.declares_padding:
                one.add_new("PixelPaddingValue", "SS" if self.signed else "US", self.padding)
        one.PixelData = stored.astype("<i2" if self.signed else "<u2").tobytes()
        return one

    def write(self, folder: Path, skip: Sequence[int] = ()) -> list[Path]:
        """Write the slices but those of `skip`, under names that say nothing about their order."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for index in range(len(self.hu)):
            if index in skip:
                continue
            one = self.dataset(index)
            self.edit(one, index)
            name = one.SOPInstanceUID.rsplit(".", 1)[-1][-12:]
            files.append(folder / f"{name}.dcm")
            one.save_as(files[-1], enforce_file_format=True)
        return files


def as_raw_datasets(files: Sequence[Path], is_implicit: bool = False, ending: str = ".dcm") -> list[Path]:
    """The same data sets without preamble and meta header, as an old archive or a network dump has them."""
    renamed = []
    for file in files:
        dataset = pydicom.dcmread(file)
        file.unlink()
        del dataset.file_meta
        dataset.preamble = None
        renamed.append(file.with_suffix(ending))
        pydicom.dcmwrite(renamed[-1], dataset, implicit_vr=is_implicit, little_endian=True)
    return renamed


def random_hu(shape: tuple[int, int, int] = (24, 12, 10), seed: int = 0) -> NDArray:
    """HU [slice, row, column] in which no two voxels of a slice and no two slices are alike."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(np.prod(shape)) % 4095 - 1023).reshape(shape).astype(np.int16)
