"""Overlap, NSD and HD95 against a slow reference, by hand, and over folders."""

import csv
import json
import math

import numpy as np
import pytest
import SimpleITK
from numpy.random import default_rng

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation import segmentation
from nnunet_synth.evaluation.overlap import dice
from nnunet_synth.evaluation.segmentation import (
    COUNTS,
    DETECTIONS,
    METRICS,
    Criteria,
    compare,
    hausdorff,
    surface_dice,
    surface_distances,
)
from tests.reference import segmentation as reference


def blobs(shape, seed):
    """Two overlapping random masks with rough borders and loose voxels."""
    from scipy.ndimage import gaussian_filter
    rng = default_rng(seed)
    base = gaussian_filter(rng.standard_normal(shape), 1.2)
    return [base + 0.15 * rng.standard_normal(shape) > np.quantile(base, 0.7) for _ in range(2)]


class TestMetrics:
    @pytest.mark.parametrize("shape, spacing", [((15, 17), (1.0, 1.0)), ((15, 17), (3.0, 0.5)), ((1, 12), (2.0, 1.0))])
    @pytest.mark.parametrize("seed", range(3))
    def test_2d_equals_the_reference(self, shape, spacing, seed):
        prediction, truth = blobs(shape, seed)
        check_against_reference(prediction, truth, spacing)

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.5, 1.0, 0.4)])
    def test_3d_equals_the_reference(self, spacing):
        pytest.importorskip("monai")
        prediction, truth = blobs((4, 7, 8), 5)
        check_against_reference(prediction, truth, spacing)

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5), (0.8, 2.0, 5.0)])
    def test_element_areas_are_deepminds(self, spacing):
        monai = pytest.importorskip("monai.metrics.utils")
        # Our bits are counted from the other end: the mirrored pattern, which has the same area.
        theirs = np.asarray(monai.create_table_neighbour_code_to_surface_area(spacing)[0])
        np.testing.assert_allclose(segmentation._element_areas(spacing)[1:-1], theirs[1:-1], rtol=1e-5)
        theirs = np.asarray(monai.create_table_neighbour_code_to_contour_length(spacing[1:])[0])
        np.testing.assert_allclose(segmentation._element_areas(spacing[1:])[1:-1], theirs[1:-1], rtol=1e-5)

    def test_monai_agrees(self):
        metrics = pytest.importorskip("monai.metrics")
        torch = pytest.importorskip("torch")
        prediction, truth = blobs((6, 20, 20), 1)
        spacing = (4.0, 1.0, 1.5)
        theirs = metrics.compute_surface_dice(*(torch.from_numpy(mask)[None, None] for mask in (prediction, truth)),
                                              class_thresholds=[1.2], include_background=True, spacing=spacing,
                                              use_subvoxels=True)
        ours = surface_dice(surface_distances(prediction, truth, spacing), 1.2)
        assert ours == pytest.approx(float(theirs), abs=1e-5)

    def test_shifted_square_by_hand(self):
        truth, prediction = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
        truth[5:10, 5:10], prediction[5:10, 7:12] = True, True
        assert dice(prediction, truth) == pytest.approx(2 * 15 / 50)
        surfaces = surface_distances(prediction, truth, (1.0, 1.0))
        # A contour of 5×5 pixels: 4 sides of 4 elements of length 1, and 4 corners of √½.
        assert surfaces.truth_area.sum() == pytest.approx(16 + 4 * math.sqrt(0.5))
        assert hausdorff(surfaces, 100) == 2.0
        # Farther than 1 from the other contour: the outer side (4 and 2 corners) and the middle 2 of the inner one.
        far = 4 + 2 * math.sqrt(0.5) + 2
        assert surface_dice(surfaces, 1.0) == pytest.approx(1 - far / (16 + 4 * math.sqrt(0.5)))
        assert surface_dice(surfaces, 2.0) == 1.0

    def test_tolerance_is_in_mm_along_each_axis(self):
        truth, prediction = np.zeros((3, 12, 12), bool), np.zeros((3, 12, 12), bool)
        truth[:2, 3:8, 3:8], prediction[1:, 3:8, 3:8] = True, True
        assert hausdorff(surface_distances(prediction, truth, (5.0, 1.0, 1.0)), 100) == 5.0
        assert hausdorff(surface_distances(prediction, truth, (0.5, 1.0, 1.0)), 100) == 0.5

    def test_perfect_and_symmetric(self):
        a, b = blobs((5, 12, 12), 2)
        perfect = compare(a, a, (2, 1, 1), Criteria(tolerance=0.0))
        assert {metric: perfect[metric] for metric in METRICS} == dict.fromkeys(METRICS, 1.0) | {"HD95": 0.0}
        one, other = compare(a, b, (2, 1, 1), Criteria()), compare(b, a, (2, 1, 1), Criteria())
        for mine, theirs in [(metric, metric) for metric in ("DSC", "NSD", "HD95", "lesion_F1")] + [
                ("precision", "recall"), ("recall", "precision"), (COUNTS[0], COUNTS[2]), (COUNTS[1], COUNTS[3])]:
            assert one[mine] == pytest.approx(other[theirs])

    def test_precision_and_recall_by_hand(self):
        truth, prediction = np.zeros((4, 10), bool), np.zeros((4, 10), bool)
        truth[1, 0:8], prediction[1, 6:9] = True, True          # 2 pixels in common
        scores = compare(prediction, truth, (1, 1), Criteria())
        assert (scores["precision"], scores["recall"]) == (2 / 3, 2 / 8)
        assert scores["DSC"] == pytest.approx(2 / (3 / 2 + 8 / 2))         # their harmonic mean

    def test_lesions_are_counted(self):
        truth, prediction = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
        truth[0:3, 0:3] = truth[8:11, 8:11] = prediction[0:3, 0:2] = prediction[5, 5] = True
        scores = compare(prediction, truth, (1, 1), Criteria())
        assert [scores[name] for name in COUNTS] == [2, 1, 2, 1] and scores["lesion_F1"] == 0.5
        assert compare(prediction, truth, (1, 1), Criteria(lesion_overlap=0.7))["found_lesions"] == 0
        assert compare(prediction, truth, (1, 1), Criteria(min_lesion_volume=2))["predicted_lesions"] == 1

    def test_position_in_the_image_does_not_matter(self):
        a, b = blobs((9, 9), 3)
        shifted = [np.pad(mask, ((11, 2), (0, 7))) for mask in (a, b)]
        assert compare(a, b, (1, 2), Criteria()) == pytest.approx(compare(*shifted, (1, 2), Criteria()))

    def test_empty_cases(self):
        mask, empty = np.ones((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
        both = compare(empty, empty, (1, 1, 1), Criteria())
        assert all(math.isnan(both[metric]) for metric in METRICS) and all(both[count] == 0 for count in COUNTS)
        diagonal = math.sqrt((3 * 5) ** 2 + 4 ** 2 + 10 ** 2)
        for pair in ((mask, empty), (empty, mask)):
            scores = compare(*pair, (5, 1, 2), Criteria())
            assert {metric: scores[metric] for metric in METRICS} == dict.fromkeys(METRICS, 0) | {
                "HD95": pytest.approx(diagonal)}


def check_against_reference(prediction, truth, spacing):
    surfaces = surface_distances(prediction, truth, spacing)
    assert dice(prediction, truth) == reference.dice(prediction, truth)
    for tolerance in (0.0, 0.5, 1.0, 2.6):
        assert surface_dice(surfaces, tolerance) == pytest.approx(
            reference.surface_dice(prediction, truth, spacing, tolerance), abs=1e-6)
    for percent in (50, 95, 100):
        assert hausdorff(surfaces, percent) == pytest.approx(
            reference.hausdorff(prediction, truth, spacing, percent), abs=1e-6)


# Folders ------------------------------------------------------------------------------------------------------------

def write(path, array, spacing=(2.0, 1.5, 1.0), origin=(0, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array.astype(np.uint8))
    if array.ndim == 3:
        image.SetSpacing(spacing[::-1])
        image.SetOrigin(origin)
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path):
    """Cases a (both classes), b (empty truth, wrong prediction), c (both empty) and a dataset.json."""
    truth, prediction = tmp_path / "labelsTs", tmp_path / "predicted"
    labels = np.zeros((4, 10, 10), int)
    labels[:, 2:6, 2:6], labels[1:3, 6:9, 6:9] = 1, 2
    shifted = np.roll(labels, 1, axis=2)
    empty = np.zeros_like(labels)
    spot = empty.copy()
    spot[0, 0, 0] = 1
    for name, t, p in (("a", labels, shifted), ("b", empty, spot), ("c", empty, empty)):
        write(truth / f"{name}.nii.gz", t)
        write(prediction / f"{name}.nii.gz", p)
    write_labels(tmp_path, {"background": 0, "lesion": 1, "effusion": 2})
    return prediction, truth


def write_labels(folder, labels):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))


def run(*arguments):
    import argparse

    from nnunet_synth.commands import evaluate as verb
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(argument) for argument in arguments]))


class TestFolders:
    def test_scores_table_and_files(self, folders, tmp_path, capsys):
        prediction, truth = folders
        run(prediction, truth, "--output", tmp_path / "out", "--tolerance", "1")
        with open(tmp_path / "out" / "evaluation.csv") as file:
            rows = {(row["case"], row["class"]): row for row in csv.DictReader(file)}
        assert len(rows) == 6
        assert float(rows["a", "lesion"]["DSC"]) == pytest.approx(2 * 3 / 8)
        assert rows["b", "lesion"]["DSC"] == "0.0" and rows["c", "lesion"]["DSC"] == ""
        assert rows["a", "lesion"]["precision"] == rows["a", "lesion"]["recall"] == "0.75"
        assert [rows["b", "lesion"][name] for name in ("lesion_F1", *COUNTS)] == ["0.0", "0", "0", "1", "0"]
        assert float(rows["b", "lesion"]["HD95"]) == pytest.approx(math.dist((8, 15, 10), (0, 0, 0)))
        content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        lesion = content["summary"]["lesion"]
        assert lesion["num_cases"] == 3 and lesion["num_both_empty"] == 1
        assert lesion["DSC"] == pytest.approx({"mean": 0.375, "sd": np.std([0.75, 0], ddof=1), "num_cases": 2})
        assert content["summary"]["effusion"]["DSC"]["sd"] is None
        assert content["unit"] == "mm" and content["tolerance"] == 1.0 and content["lesion_overlap"] == 0.1
        printed = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert printed[0] == ["lesion", "effusion"] and ["cases", "3", "3"] in printed
        assert ["DSC", "0.375", "±", "0.530", "0.667"] in printed

    def test_slices_in_which_a_class_is_found(self, folders, tmp_path, capsys):
        prediction, truth = folders
        run(prediction, truth, "--output", tmp_path / "out", "--min-false-positive", "2")
        content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        # Case a has lesions in 4 slices, met at a DSC of ¾; the single wrong pixel of case b is too small to count.
        lesion = {row["case"]: [row[name] for name in DETECTIONS]
                  for row in content["cases"] if row["class"] == "lesion"}
        assert lesion == {"a": [4, 0, 0], "b": [0, 0, 0], "c": [0, 0, 0]}
        assert content["summary"]["lesion"]["slices"] == {"precision": 1, "recall": 1}
        assert ["recall", "of", "slices", "1.000", "1.000"] in map(str.split, capsys.readouterr().out.splitlines())
        run(prediction, truth, "--output", tmp_path / "out", "--min-false-positive", "1", "--min-slice-dice", "0.7")
        content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert content["summary"]["lesion"]["slices"] == {"precision": 4 / 5, "recall": 1}
        assert content["summary"]["effusion"]["slices"] == {"precision": None, "recall": 0}     # 2/3 in both slices

    def test_lesion_options(self, folders, tmp_path):
        prediction, truth = folders
        run(prediction, truth, "--output", tmp_path / "out", "--min-lesion-volume", "4", "--lesion-overlap", "0.8")
        content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        lesion = {row["case"]: row for row in content["cases"] if row["class"] == "lesion"}
        assert lesion["a"]["found_lesions"] == 0                # three quarters are covered
        assert lesion["b"]["DSC"] == 0 and lesion["b"]["lesion_F1"] is None     # its only spot has 3 mm³
        assert content["summary"]["lesion"]["lesion_F1"]["num_cases"] == 1

    def test_results_lie_beside_the_predictions_by_default(self, folders):
        run(*folders)
        assert (folders[0] / "evaluation.csv").is_file()
        run(*folders)       # and do not disturb the next run

    def test_spacing_of_the_files_is_used(self, folders, tmp_path):
        from nnunet_synth.commands.evaluate import evaluate
        prediction, truth = folders
        close = evaluate(prediction, truth, ["effusion"], tolerance=1.0)["summary"]["effusion"]
        assert close["NSD"]["mean"] == 1.0              # shifted by one voxel = 1 mm
        assert evaluate(prediction, truth, ["effusion"], tolerance=0.9)["summary"]["effusion"]["NSD"]["mean"] < 1

    def test_labels_by_name_or_value_and_without_dataset_json(self, folders, tmp_path):
        from nnunet_synth.commands.evaluate import evaluate
        assert list(evaluate(*folders, labels=["2"])["summary"]) == ["effusion"]
        (tmp_path / "dataset.json").unlink()
        assert list(evaluate(*folders)["summary"]) == ["1", "2"]
        assert list(evaluate(*folders, labels=[2])["summary"]) == ["2"]
        with pytest.raises(UserError, match="lesion"):
            evaluate(*folders, labels=["lesion"])

    def test_regions(self, folders, tmp_path):
        from nnunet_synth.commands.evaluate import evaluate
        write_labels(tmp_path, {"background": 0, "whole": [1, 2], "effusion": 2})
        results = evaluate(*folders)
        assert list(results["summary"]) == ["whole", "effusion"]
        whole = next(row for row in results["cases"] if row["case"] == "a" and row["class"] == "whole")
        # 64 + 18 voxels, of which 48 + 12 are met by the shifted ones
        assert whole["DSC"] == pytest.approx(2 * (48 + 12) / (2 * 82))

    def test_ignored_voxels_do_not_count(self, tmp_path):
        from nnunet_synth.commands.evaluate import evaluate
        truth, prediction = np.zeros((2, 6, 6), int), np.zeros((2, 6, 6), int)
        truth[:, 1:3, 1:3], truth[:, 4:] = 1, 2
        prediction[:, 1:3, 1:3], prediction[:, 4:, 2:4] = 1, 1
        write(tmp_path / "t/a.nii.gz", truth)
        write(tmp_path / "p/a.nii.gz", prediction)
        write_labels(tmp_path, {"background": 0, "lesion": 1, "ignore": 2})
        results = evaluate(tmp_path / "p", tmp_path / "t")
        assert list(results["summary"]) == ["lesion"] and results["cases"][0]["DSC"] == 1.0
        write_labels(tmp_path, {"background": 0, "lesion": 1})
        with pytest.raises(UserError, match="value.* 2 "):
            evaluate(tmp_path / "p", tmp_path / "t")

    def test_png_is_measured_in_pixels(self, tmp_path):
        from PIL import Image

        from nnunet_synth.commands.evaluate import evaluate
        for folder, start in (("t", 2), ("p", 4)):
            mask = np.zeros((12, 12), np.uint8)
            mask[3:8, start:start + 5] = 1
            (tmp_path / folder).mkdir()
            Image.fromarray(mask).save(tmp_path / folder / "slice.png", dpi=(300, 300))
        results = evaluate(tmp_path / "p", tmp_path / "t")
        assert results["unit"] == "pixel" and results["cases"][0]["HD95"] == 2.0

    @pytest.mark.parametrize("change, message", [
        ("missing", "lacks 1 of the 3 cases"), ("extra", "lacks 1 of the 4 cases"), ("shape", "shape"),
        ("spacing", "spacing"), ("origin", "origin"), ("value", r"value\(s\) 7"), ("truncated", "truncated"),
        ("no folder", "no folder"), ("no files", "no label maps"), ("float", "not integers")])
    def test_bad_input(self, folders, tmp_path, change, message):
        prediction, truth = folders
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(prediction / "a.nii.gz")))
        if change == "missing":
            (prediction / "b.nii.gz").unlink()
        elif change == "extra":
            write(prediction / "d.nii.gz", labels)
        elif change == "shape":
            write(prediction / "a.nii.gz", labels[:-1])
        elif change == "spacing":
            write(prediction / "a.nii.gz", labels, spacing=(2.0, 1.5, 1.2))
        elif change == "origin":
            write(prediction / "a.nii.gz", labels, origin=(0, 5, 0))
        elif change == "value":
            write(prediction / "a.nii.gz", np.where(labels == 2, 7, labels))
        elif change == "truncated":
            content = (prediction / "a.nii.gz").read_bytes()
            (prediction / "a.nii.gz").write_bytes(content[:len(content) // 2])
        elif change == "no folder":
            prediction = tmp_path / "nowhere"
        elif change == "no files":
            prediction = tmp_path / "empty"
            prediction.mkdir()
        elif change == "float":
            image = SimpleITK.ReadImage(str(prediction / "a.nii.gz"), SimpleITK.sitkFloat32)
            SimpleITK.WriteImage(image * 0.5, str(prediction / "a.nii.gz"))
        with pytest.raises(UserError, match=message) as error:
            run(prediction, truth, "--output", tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("criterion, value, message", [
        ("tolerance", -1.0, "tolerance"), ("lesion_overlap", 10.0, "lesion overlap"),
        ("min_lesion_volume", float("nan"), "lesion volume"), ("min_false_positive", -1, "smallest false detection"),
        ("min_slice_dice", 0.0, "lowest DSC")])
    def test_criteria_out_of_range(self, folders, tmp_path, capsys, criterion, value, message):
        from nnunet_synth.commands.evaluate import evaluate
        with pytest.raises(UserError, match=message):
            evaluate(*folders, output=tmp_path / "out", **{criterion: value})
        with pytest.raises(SystemExit, match="2"):
            run(*folders, "--output", tmp_path / "out", f"--{criterion.replace('_', '-')}=-5")
        assert f"argument --{criterion.replace('_', '-')}: must be" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("content", ["{", "{}", '{"labels": {"lesion": "one"}}', '{"labels": [1]}'])
    def test_unusable_dataset_json(self, folders, tmp_path, content):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(UserError, match="dataset.json"):
            run(*folders)


class TestWhatIsSaid:
    def test_where_it_wrote_and_a_tolerance_below_the_spacing(self, folders, tmp_path, capsys):
        run(*folders, "--output", tmp_path / "out", "--tolerance", "1.9")
        said = capsys.readouterr().out
        assert f"Written: {tmp_path / 'out' / 'evaluation.csv'} and evaluation.json" in said
        assert "the tolerance of 1.9 mm is below the largest spacing (2 mm)" in said
        run(*folders, "--tolerance", "2")
        assert "below the largest spacing" not in capsys.readouterr().out

    @pytest.mark.parametrize("side, smallest", [(512, 200), (128, 13), (1024, 800), (4, 1)])
    def test_false_detections_count_by_their_share_of_the_picture(self, side, smallest):
        truth, prediction = np.zeros((side, side), bool), np.zeros((side, side), bool)
        for area, counts in ((smallest - 1, 0), (smallest, 1)):
            prediction.ravel()[:area] = True
            assert compare(prediction, truth, (1, 1), Criteria())["falsely_found_slices"] == counts
        exact = compare(prediction, truth, (1, 1), Criteria(smallest_false_positive=smallest + 1))
        assert exact["falsely_found_slices"] == 0       # given explicitly, it is not scaled
