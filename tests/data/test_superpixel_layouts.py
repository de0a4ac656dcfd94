"""Unsupervised masks as layouts and as clusters: what is written, and that it arrives in the preprocessed maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_synth.commands.layouts import layouts
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.layouts import CLUSTER_FACTOR, layout_file, locations_file, open_map
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.data.superpixel_layouts import SuperpixelSettings, find_levels, slice_axis, to_unit_range
from nnunet_synth.data.unlabelled import PoolPlan, preprocess_pool
from nnunet_synth.errors import UserError
from nnunet_synth.superpixels import slic

CASES = [*((f"phantom_tr_{number:03d}", "Tr") for number in range(6)),
         *((f"phantom_ul_{number:03d}", "Ul") for number in range(3))]
CT = {"channel_names": {"0": "CT"}}


@pytest.fixture
def raw(planned_dataset: Path) -> Path:
    folder, = (planned_dataset / "nnUNet_raw").iterdir()
    return folder


def read(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def expected_levels(raw: Path, case: str, part: str, step: float, num_segments: int = 5) -> np.ndarray:
    """1 + int(mean / t) of the superpixels of each slice, in the window of UM2I."""
    found = []
    for hu in read(raw / f"images{part}" / f"{case}_0000.nii.gz").astype(np.float64):
        gray = np.clip((hu + 1500) / 1600, 0, 1)
        ids = slic(torch.from_numpy(gray).float()[None, None], num_segments)[0].numpy()
        means = np.array([255 * gray[ids == m].mean() if (ids == m).any() else 0 for m in range(ids.max() + 1)])
        found.append(1 + (means // step).astype(int)[ids])
    return np.stack(found)


def test_layouts_are_the_levels_of_superpixels_and_have_names(raw):
    layouts(701, "superpixel", overwrite=True, step=60)
    declared = json.loads((raw / "dataset.json").read_text())["nnunet_synth"]["layout_labels"]
    assert declared == {"superpixel 0-60": 1, "superpixel 60-120": 2, "superpixel 120-180": 3, "superpixel 180-240": 4,
                        "superpixel 240-255": 5}
    for case, part in CASES:                    # 48 × 48 pixels: 512 · (48 / 512)² = 4.5 superpixels
        found = read(raw / f"layouts{part}" / f"{case}.nii.gz")
        np.testing.assert_array_equal(found, expected_levels(raw, case, part, 60, 4))
        assert found.min() >= 1 and len(np.unique(found)) > 2
    experiment = load_experiment(701, "2d")
    assert experiment.semantic.names[1:6] == list(declared)            # what a synthesizer draws from
    preprocess_pool(experiment)
    for case, part in CASES:
        stored = open_map(layout_file(experiment, case))[:]
        np.testing.assert_array_equal(stored, read(raw / f"layouts{part}" / f"{case}.nii.gz"))
    report = json.loads((raw / "layouts_report.json").read_text())
    assert (report["method"], report["segmentation"], report["step"]) == ("superpixel", "slic", 60)
    assert not any(case["doubts"] for case in report["cases"])


def test_clusters_go_beside_the_layouts_and_both_arrive_in_one_map(raw):
    """The plan has the spacing of the phantom, so nothing is resampled and all voxels can be compared."""
    lungs = {case: read(raw / f"layouts{part}" / f"{case}.nii.gz") for case, part in CASES}
    preprocess_pool(load_experiment(701, "2d"))
    assert PoolPlan(load_experiment(701, "2d")).is_complete
    layouts(701, "superpixel", step=50, segments=5000, into="cluster", segmentation="felzenszwalb")
    ours = json.loads((raw / "dataset.json").read_text())["nnunet_synth"]
    assert ours["layout_labels"] == {"left_lung": 1, "right_lung": 2}
    assert ours["clusters"] == {"method": "superpixel", "segmentation": "felzenszwalb", "num_segments": 5000,
                                "step": 50}
    assert json.loads((raw / "clusters_report.json").read_text())["segmentation"] == "felzenszwalb"

    experiment = load_experiment(701, "2d")
    assert len(preprocess_pool(experiment).missing_layouts) == len(CASES)
    assert PoolPlan(load_experiment(701, "2d")).is_complete
    for case, part in CASES:
        clusters = read(raw / f"clusters{part}" / f"{case}.nii.gz")
        stored = open_map(layout_file(experiment, case))[:]
        np.testing.assert_array_equal(stored % CLUSTER_FACTOR, lungs[case])
        np.testing.assert_array_equal(stored // CLUSTER_FACTOR, clusters)
        assert clusters.min() >= 1 and clusters.max() <= 6 and len(np.unique(clusters)) > 2
        assert len(np.load(locations_file(experiment, case))) == (lungs[case] > 0).sum()
    part, = FoldSlices(load_experiment(701, "2d", 0)).iterate(False, 1)
    assert set(part.cluster.unique().tolist()) <= set(range(1, 7)) and set(part.layout.unique().tolist()) <= {0, 1, 2}


def test_a_map_is_made_again_when_one_of_its_sources_comes_or_goes(raw):
    case, part = CASES[0]
    (raw / f"layouts{part}" / f"{case}.nii.gz").unlink()
    layouts(701, "superpixel", into="cluster", segments=5000)
    preprocess_pool(load_experiment(701, "2d"))
    experiment = load_experiment(701, "2d")
    stored = open_map(layout_file(experiment, case))[:]
    assert not (stored % CLUSTER_FACTOR).any() and (stored // CLUSTER_FACTOR).all()
    assert len(np.load(locations_file(experiment, case))) == 0          # nobody knows where to look

    other, part = CASES[1]
    (raw / f"clusters{part}" / f"{other}.nii.gz").unlink()
    assert [name for name, _ in PoolPlan(load_experiment(701, "2d")).missing_layouts] == [other]
    preprocess_pool(load_experiment(701, "2d"))
    stored = open_map(layout_file(experiment, other))[:]
    assert not (stored // CLUSTER_FACTOR).any() and (stored % CLUSTER_FACTOR).any()
    (raw / f"layouts{part}" / f"{other}.nii.gz").unlink()
    preprocess_pool(load_experiment(701, "2d"))
    assert not layout_file(experiment, other).exists()


def test_clusters_made_otherwise_are_not_mixed(raw):
    layouts(701, "superpixel", into="cluster")
    before = {case: read(raw / f"clusters{part}" / f"{case}.nii.gz") for case, part in CASES}
    (raw / "clustersTr" / f"{CASES[0][0]}.nii.gz").unlink()
    layouts(701, "superpixel", into="cluster")                          # an interrupted run goes on
    np.testing.assert_array_equal(read(raw / "clustersTr" / f"{CASES[0][0]}.nii.gz"), before[CASES[0][0]])
    with pytest.raises(UserError, match="made otherwise .*step 50.*--overwrite"):
        layouts(701, "superpixel", into="cluster", step=25)
    layouts(701, "superpixel", into="cluster", step=25, overwrite=True)
    assert any((read(raw / f"clusters{part}" / f"{case}.nii.gz") != before[case]).any() for case, part in CASES)


@pytest.mark.parametrize("value", [-1, 128])
def test_clusters_that_the_map_cannot_hold_are_refused(raw, value):
    case, part = CASES[0]
    image = SimpleITK.ReadImage(str(raw / f"layouts{part}" / f"{case}.nii.gz"))
    wrong = SimpleITK.GetImageFromArray(np.full(SimpleITK.GetArrayFromImage(image).shape, value, np.int16))
    wrong.CopyInformation(image)
    (raw / f"clusters{part}").mkdir()
    SimpleITK.WriteImage(wrong, str(raw / f"clusters{part}" / f"{case}.nii.gz"))
    with pytest.raises(UserError, match=f"values from {value} to {value}: clusters are numbered from 1 to 127"):
        preprocess_pool(load_experiment(701, "2d"))


def test_ct_is_windowed_and_other_images_lie_between_their_percentiles():
    hu = np.array([-2000, -1500, -700, 100, 3000], np.float32).reshape(1, 1, 1, 5)
    np.testing.assert_allclose(to_unit_range(hu, CT).ravel(), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(to_unit_range(hu, {"channel_names": {"0": "scan"}}).ravel(), [0, 0, 0.5, 1, 1])
    mr = np.stack([np.linspace(0, 800, 10001), np.linspace(5, 6, 10001)]).reshape(2, 1, 1, -1).astype(np.float32)
    unit = to_unit_range(mr, {"channel_names": {"0": "T1", "1": "T2"}})
    assert unit.min() == 0 and unit.max() == 1
    np.testing.assert_allclose(unit[0], unit[1], atol=1e-4)
    assert unit[0, 0, 0, 5000] == pytest.approx(0.5, abs=1e-3) and (unit[0] == 0).sum() == (unit[0] == 1).sum() == 6
    assert not to_unit_range(np.full((1, 2, 3, 3), 7, np.float32), {}).any()        # a constant image


def test_slices_lie_as_in_nnunets_2d_configurations(raw):
    assert [slice_axis(spacing) for spacing in ((5, 1, 1), (1, 1, 1), (1, 1, 3), (0.6, 0.7, 0.7))] == [0, 0, 2, 1]
    # A volume that is coarse along its last axis is cut there.
    case, part = CASES[0]
    file = raw / f"images{part}" / f"{case}_0000.nii.gz"
    image = SimpleITK.ReadImage(str(file))
    turned = SimpleITK.GetImageFromArray(np.ascontiguousarray(np.moveaxis(SimpleITK.GetArrayFromImage(image), 0, 2)))
    turned.SetSpacing(image.GetSpacing()[::-1])
    expected = expected_levels(raw, case, part, 50, 4)
    SimpleITK.WriteImage(turned, str(file))
    (raw / f"layouts{part}" / f"{case}.nii.gz").unlink()
    layouts(701, "superpixel", overwrite=True)
    np.testing.assert_array_equal(np.moveaxis(read(raw / f"layouts{part}" / f"{case}.nii.gz"), 2, 0), expected)


def test_superpixels_are_of_all_channels_and_levels_of_the_first():
    image = np.zeros((2, 64, 64), np.float32)
    image[0] = 0.5
    image[0, 32:], image[1, :, 40:] = 0.6, 1
    levels = find_levels(image, SuperpixelSettings(num_segments=512 * 4, step=10))
    assert set(np.unique(levels)) == {1 + 127 // 10, 1 + 153 // 10}
    with_edge = find_levels(image[:1], SuperpixelSettings(num_segments=512 * 4, step=10))
    np.testing.assert_array_equal(levels, with_edge)


@pytest.mark.parametrize("options, message", [
    (dict(segmentation="watershed"), "unknown superpixels 'watershed'"), (dict(segments=0), "--segments 0"),
    (dict(step=0), "step t = 0"), (dict(step=256), "step t = 256"),
    (dict(step=1.5), "171 levels.*choose at least 2.02"),
    (dict(into="cluster", segments=300_000), "--segments 300000: choose at most 262144"),
    (dict(into="labels"), "--into labels"), (dict(images="x", masked="y"), "--images has no superpixels"),
    (dict(method="threshold", step=10), "options of --method superpixel"),
    (dict(method="labels", into="cluster"), "options of --method superpixel"),
    (dict(device="cpu"), "options of --method lungmask"),
    (dict(), r"other labels \(left_lung, right_lung\): replace them all by --overwrite"),
])
def test_mistakes(raw, options, message):
    before = json.loads((raw / "dataset.json").read_text())
    with pytest.raises(UserError, match=message):
        layouts(701, **{"method": "superpixel", **options})
    assert json.loads((raw / "dataset.json").read_text()) == before
    assert not list(raw.glob("clusters*"))


def test_clusters_that_were_not_made_are_not_declared(raw):
    """The declaration stays that of the maps which are there."""
    def clusters(**options):
        layouts(701, method="superpixel", into="cluster", **options)

    def declared():
        return json.loads((raw / "dataset.json").read_text())["nnunet_synth"].get("clusters")

    images = {image: image.read_bytes() for image in raw.glob("images*/*.nii.gz")}
    for image in images:
        image.write_bytes(b"no image")
    with pytest.raises(UserError):
        clusters(step=10)
    assert declared() is None and not list(raw.glob("clusters*/*"))
    for image, content in images.items():
        image.write_bytes(content)
    clusters(step=10)
    made = declared()
    assert made["step"] == 10
    for image in images:
        image.write_bytes(b"no image")
    with pytest.raises(UserError):
        clusters(step=25, overwrite=True)
    assert declared() == made
