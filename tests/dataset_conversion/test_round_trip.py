"""Whatever way a volume lies in its file, every voxel keeps its value and its place in the patient.

The volumes are turned by permuting arrays and written by nibabel, and compared through the physical point of every
voxel: neither uses SimpleITK's orientation filter, by which the converters turn.
"""

from collections.abc import Iterable
from itertools import permutations, product
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from nnunet_synth.dataset_conversion import covid19_ct_seg, covid_19_20, folder, mosmed
from nnunet_synth.dataset_conversion.report import SUFFIX, CaseReport, ConversionReport
from nnunet_synth.dataset_conversion.writer import write_dataset
from tests.makers import covid19_ct_seg as covid19_ct_seg_copy
from tests.makers import covid_19_20 as covid_19_20_copy
from tests.makers import mosmed as mosmed_copy

ALL_ORDERS = ["".join(letters) for axes in permutations(("LR", "PA", "SI")) for letters in product(*axes)]
SHAPE, SPACING = (7, 6, 5), (0.7, 0.8, 5.0)         # x, y, z: none twice, so that no two axes can be exchanged unseen
OPPOSITE = {"L": "R", "P": "A", "S": "I"}


def planted() -> tuple[NDArray, NDArray, NDArray]:
    """HU and lesion [x, y, z] in LPS order, and the affine from its indices to LPS mm."""
    rng = np.random.default_rng(4)
    hu = rng.permutation(np.linspace(-1024, 3071, int(np.prod(SHAPE))).astype(np.int16)).reshape(SHAPE)
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[1:3, 4:6, 0:2] = lesion[5, 0, 4] = 1     # looks different from every side
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -40.5, 17.25, 300.125
    return hu, lesion, affine


def tilted(affine: NDArray, degrees: float) -> NDArray:
    """Turned about the patient's x axis: oblique, as after a registration; the axes stay perpendicular."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    turn = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
    return turn @ affine


def stored_as(order: str, array: NDArray, affine: NDArray) -> tuple[NDArray, NDArray]:
    """The same voxels in another axis order; `order` names where each index grows to, as `LPS` of the argument does."""
    flipped, flipped_affine = array, affine.copy()
    for axis, letter in enumerate("LPS"):
        if OPPOSITE[letter] in order:
            flipped = np.flip(flipped, axis)
            flipped_affine[:, 3] += flipped_affine[:, axis] * (array.shape[axis] - 1)
            flipped_affine[:, axis] *= -1
    axes = ["LPS".index(letter) if letter in "LPS" else "RAI".index(letter) for letter in order]
    return flipped.transpose(axes), flipped_affine[:, [*axes, 3]]


def save(array: NDArray, lps: NDArray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1]) @ lps)       # NIfTI is RAS
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def voxels(path: Path) -> tuple[NDArray, NDArray]:
    """LPS mm of every voxel [N, 3] and its value [N], by the affine in the file."""
    image = nibabel.load(path)
    index = np.indices(image.shape).reshape(3, -1)
    points = (np.diag([-1, -1, 1, 1]) @ image.affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    return points.T, np.asanyarray(image.dataobj).reshape(-1)


def values_at(points: NDArray, path: Path) -> NDArray:
    """Values of an image, as SimpleITK and so nnU-Net places it, at physical points that must be centres of voxels."""
    image = SimpleITK.ReadImage(str(path))
    index = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in points.tolist()])
    assert np.abs(index - np.rint(index)).max() < 1e-3
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)[tuple(np.rint(index).astype(int).T)]


def dice(a: NDArray, b: NDArray) -> float:
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


def check(stored_image: Path, stored_label: Path | None, dataset: Path, case: str, part: str = "Tr") -> None:
    points, hu = voxels(stored_image)
    written = dataset / f"images{part}" / f"{case}_0000.nii.gz"
    np.testing.assert_array_equal(values_at(points, written), hu)
    assert SimpleITK.ReadImage(str(written)).GetNumberOfPixels() == hu.size
    if stored_label is not None:
        points, lesion = voxels(stored_label)
        assert lesion.any() and dice(values_at(points, dataset / f"labels{part}" / f"{case}.nii.gz"), lesion) == 1.0


@pytest.mark.parametrize("label_order", ["as its image", "RAI"])
@pytest.mark.parametrize("degrees", [0, 12])
def test_folder_in_every_axis_order(tmp_path, degrees, label_order):
    hu, lesion, affine = planted()
    affine = tilted(affine, degrees)
    assert len(set(ALL_ORDERS)) == 48 and {"LPS", "RAS", "LAS", "LPI"} < set(ALL_ORDERS)
    for order in ALL_ORDERS:
        save(*stored_as(order, hu, affine), tmp_path / "scans" / f"{order}.nii.gz")
        label = stored_as(label_order if label_order == "RAI" else order, lesion, affine)
        save(*label, tmp_path / "labels" / f"{order}.nii.gz")
    options = folder.Options(labels=tmp_path / "labels")
    report = write_dataset(folder.find_cases(tmp_path / "scans", options), folder.describe(options),
                           tmp_path / "Dataset001_Turned")
    for order in ALL_ORDERS:
        check(tmp_path / "scans" / f"{order}.nii.gz", tmp_path / "labels" / f"{order}.nii.gz", report.folder, order)
    for case in report.cases:
        of_image = () if case.id == "LPS" else (f"turned from {case.id} to LPS",)
        of_label = () if label_order != "RAI" or case.id == "RAI" else ("label map: turned from RAI to LPS",)
        assert case.repairs == of_image + of_label
    arrays = {SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).tobytes()
              for file in (report.folder / "imagesTr").iterdir()}
    assert len(arrays) == 1                         # nnU-Net looks at the array alone: all of them lie the same way


@pytest.mark.parametrize("order", ["LPS", "RAS", "LAS", "LPI"])
@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_the_comparison_sees_every_flip(tmp_path, order, flips):
    """The oracle itself: a mirrored array under the same header is another patient, and `check` says so."""
    hu, lesion, affine = planted()
    save(*stored_as("LPS", hu, affine), tmp_path / "scan.nii.gz")
    save(*stored_as("LPS", lesion, affine), tmp_path / "label.nii.gz")
    axes = [axis for axis, flip in enumerate(flips) if flip]
    dataset = tmp_path / "dataset"
    save(*stored_as(order, np.flip(hu, axes), affine), dataset / "imagesTr" / "a_0000.nii.gz")
    save(*stored_as(order, np.flip(lesion, axes), affine), dataset / "labelsTr" / "a.nii.gz")
    if not axes:
        check(tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz", dataset, "a")
    else:
        with pytest.raises(AssertionError):
            check(tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz", dataset, "a")


# ----------------------------------------------------------------------------------------------------------------------
# The public datasets, whose test copies have one image and one label a case


def turn(file: Path, order: str) -> None:
    """Store a volume in another axis order; by nibabel."""
    image = nibabel.load(file)
    transform = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine),
                                                    nibabel.orientations.axcodes2ornt(order))
    turned = image.as_reoriented(transform)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(turned.dataobj), turned.affine, turned.header), file)
    assert nibabel.aff2axcodes(nibabel.load(file).affine) == tuple(order)


ORDERS = ["LPS", "RAS", "LAS", "LPI", "RPI", "SAL"]


def convert_turned(converter: ModuleType, source: Path, order: str, target: Path) -> ConversionReport:
    for file in source.rglob("*.nii.gz"):
        turn(file, order)
    options = converter.Options()
    report = write_dataset(converter.find_cases(source, options), converter.describe(options), target)
    assert not report.rejected and len(report.select("labelled")) >= 5
    return report


def check_cases(cases: Iterable[CaseReport], order: str, dataset: Path) -> None:
    for case in cases:
        image, *label = map(Path, case.sources)
        check(image, label[0] if case.has_label else None, dataset, case.id, SUFFIX[case.role])
        assert case.repairs == (() if order == "LPS" else (f"turned from {order} to LPS",))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("converter, maker", [(mosmed, mosmed_copy), (covid_19_20, covid_19_20_copy)])
def test_public_datasets_in_any_axis_order(tmp_path, converter, maker, order):
    source = maker.write_tree(tmp_path, size=32, num_slices=6)
    report = convert_turned(converter, source, order, tmp_path / "Dataset001_Turned")
    assert report.select("unlabelled")
    check_cases(report.cases, order, report.folder)


@pytest.mark.parametrize("order", ["LPS", "RAS", "LAS", "LPI"])
def test_covid19_ct_seg_in_any_axis_order(tmp_path, order):
    """Only the volumes whose headers tell the truth: the others are put right by their anatomy, see their own test."""
    source = covid19_ct_seg_copy.write_tree(tmp_path, size=48, num_slices=14)
    report = convert_turned(covid19_ct_seg, source, order, tmp_path / "Dataset001_Turned")
    honest = [case for case in report.cases if case.id.startswith("coronacases")]
    assert len(honest) == 10
    check_cases(honest, order, report.folder)
