"""nnunet_synth edit, with a synthesizer whose images are its masks."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from nnunet_synth.commands import edit as command
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.cs2 import CS2
from nnunet_synth.synthesizers.um2i import UM2I
from tests.conftest import DATASET_ID
from tests.trainers.runs import save_untrained, save_untrained_sean

STEP = 51.0         # gray values 0, 51, … 255 → HU of the window in fifths


class PaintsMasks(torch.nn.Module):
    """Draws a mask as it is; sees label 1 wherever it is at least 102."""

    name, divisor, has_label_head, takes_style = "paints", 16, True, False
    config = SimpleNamespace(gray_step=STEP)

    def __init__(self, bounds):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.low, self.high = bounds
        self.meta = SimpleNamespace(intensity_range=[bounds])

    def to_unit(self, image):
        return ((image - self.low) / (self.high - self.low) * 2 - 1).clamp(-1, 1)

    def mask_of(self, image, cluster):
        assert image.shape[2] % 16 == image.shape[3] % 16 == 0
        return ((image + 1) / 2 * 255 / STEP).floor() * STEP

    def from_masks(self, mask, generator=None):
        return self.low + mask / 255 * (self.high - self.low), (mask[:, 0] >= 102).long()


@pytest.fixture
def experiment(planned_dataset, monkeypatch):
    found = load_experiment(DATASET_ID, "2d", 0)
    facts = found.plans_manager.foreground_intensity_properties_per_channel["0"]
    bounds = [(facts[key] - facts["mean"]) / facts["std"] for key in ("percentile_00_5", "percentile_99_5")]
    monkeypatch.setattr(command, "load_model", lambda *_: PaintsMasks(bounds))
    return found


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(DATASET_ID), "2d", "0", *arguments, "--device", "cpu"]))


def raw(experiment, case_id, folder="imagesTr", ending="_0000.nii.gz"):
    return SimpleITK.ReadImage(str(experiment.raw_folder / folder / f"{case_id}{ending}"))


def lung_voxel(experiment, case_id):
    """(x, y, z) well inside a lung."""
    from scipy.ndimage import distance_transform_edt
    layout = SimpleITK.GetArrayFromImage(raw(experiment, case_id, "layoutsTr", ".nii.gz"))
    label = SimpleITK.GetArrayFromImage(raw(experiment, case_id, "labelsTr", ".nii.gz"))
    depth = np.stack([distance_transform_edt(part) for part in (layout > 0) & (label == 0)])
    z, y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y), int(z)


def test_a_lesion_is_drawn_where_it_was_asked_for_and_nowhere_else(experiment, tmp_path):
    case_id = experiment.val_ids[0]
    x, y, z = lung_voxel(experiment, case_id)
    run(case_id, "--circle", str(x), str(y), str(z), "9", "-200", "--output", str(tmp_path / "out"))
    before, after = raw(experiment, case_id), SimpleITK.ReadImage(str(tmp_path / "out" / f"{case_id}_0000.nii.gz"))
    assert after.GetSpacing() == before.GetSpacing() and after.GetOrigin() == before.GetOrigin()
    assert after.GetDirection() == before.GetDirection() and after.GetPixelID() == before.GetPixelID()
    old, new = SimpleITK.GetArrayFromImage(before), SimpleITK.GetArrayFromImage(after)
    others = [number for number in range(len(old)) if number != z]
    assert np.array_equal(new[others], old[others])
    facts = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    low, high = facts["percentile_00_5"], facts["percentile_99_5"]
    expected = low + np.floor((-200 - low) / (high - low) * 255 / STEP) * STEP / 255 * (high - low)
    assert new[z, y, x] == pytest.approx(expected, abs=1)
    label = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / f"{case_id}_0000_label.nii.gz")))
    truth = SimpleITK.GetArrayFromImage(raw(experiment, case_id, "labelsTr", ".nii.gz"))
    assert np.array_equal(label[others], truth[others]) and label[z, y, x] == (new[z, y, x] > low + 0.39 * (high - low))
    assert np.asarray(Image.open(tmp_path / "out" / "before_after.png")).std() > 10


def test_painted_annotations_are_the_old_ones_with_the_edits_over_them(experiment, tmp_path):
    case_id = experiment.train_ids[0]
    truth = SimpleITK.GetArrayFromImage(raw(experiment, case_id, "labelsTr", ".nii.gz"))
    z = int(truth.sum((1, 2)).argmax())
    lesion = SimpleITK.GetImageFromArray(np.where(np.arange(len(truth))[:, None, None] == z, truth, 0).astype(np.uint8))
    lesion.CopyInformation(raw(experiment, case_id))
    SimpleITK.WriteImage(lesion, str(tmp_path / "lesion.nii.gz"))
    x, y, lung_z = lung_voxel(experiment, case_id)
    (tmp_path / "edits.json").write_text(json.dumps([
        {"mask": str(tmp_path / "lesion.nii.gz"), "hu": "healthy"},
        {"circle": [x, y, lung_z], "radius": 6, "hu": -400, "label": "infection"}]))
    run(case_id, "--edits", str(tmp_path / "edits.json"), "--label-source", "painted", "--output", str(tmp_path / "o"))
    label = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "o" / f"{case_id}_0000_label.nii.gz")))
    rows, columns = np.mgrid[:truth.shape[1], :truth.shape[2]]
    pixel = raw(experiment, case_id).GetSpacing()[0]
    expected = truth.copy()
    expected[z] = 0
    expected[lung_z][((rows - y) ** 2 + (columns - x) ** 2) * pixel ** 2 <= 36] = 1
    assert np.array_equal(label, expected)


def test_a_file_may_be_edited_too(experiment, tmp_path):
    case_id = experiment.train_ids[0]
    x, y, z = map(str, lung_voxel(experiment, case_id))
    run(str(experiment.raw_folder / "imagesTr" / f"{case_id}_0000.nii.gz"), "--circle", x, y, z, "8", "-100",
        "--circle", x, y, z, "4", "healthy", "--output", str(tmp_path / "out"))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "before_after.png", f"{case_id}_0000.nii.gz", f"{case_id}_0000_label.nii.gz"]


def test_bad_input(experiment, tmp_path):
    case_id = experiment.train_ids[0]
    x, y, z = map(str, lung_voxel(experiment, case_id))
    wrong = SimpleITK.GetImageFromArray(np.ones((2, 5, 5), np.uint8))
    SimpleITK.WriteImage(wrong, str(tmp_path / "wrong.nii.gz"))
    out = ("--output", str(tmp_path / "out"))
    for arguments, message in [
        ((case_id, *out), "nothing to edit"),
        (("nobody", "--circle", x, y, z, "8", "-100", *out), "neither a case"),
        ((case_id, "--circle", "999", y, z, "8", "-100", *out), "outside the image"),
        ((case_id, "--circle", "0", "0", z, "1", "-100", *out), "outside the body"),
        ((case_id, "--circle", x, y, z, "8", "bright", *out), "must be a number or healthy"),
        ((case_id, "--circle", x, y, z, "8", "-100", "--circle", x, y, z, "9", "-100", *out), "covered by a later"),
        ((case_id, "--mask", str(tmp_path / "wrong.nii.gz"), "--hu", "-100", *out), "the image's own voxel grid"),
        ((case_id, "--mask", str(tmp_path / "wrong.nii.gz"), *out), "belong together"),
        ((case_id, "--circle", x, y, z, "8", "-100", "--output", str(tmp_path)), "name a new folder"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            run(*arguments)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_label(experiment):
    with pytest.raises(UserError, match="unknown label 'tumour' in an edit; known: infection"):
        command.label_of(experiment, "tumour")


def test_a_synthesizer_that_draws_from_no_mask_is_refused(planned_dataset):
    save_untrained_sean()
    experiment = load_experiment(DATASET_ID, "2d", 0)
    with pytest.raises(UserError, match="does not draw from unsupervised masks"):
        command.load_model(experiment, "sean", "painted", "cpu")


def test_the_issues_two_lines_need_no_folder(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case_id = experiment.train_ids[0]
    x, y, z = map(str, lung_voxel(experiment, case_id))
    run(case_id, "--circle", x, y, z, "8", "-300")
    assert sorted(file.name for file in (tmp_path / f"{case_id}_edited").iterdir())[0] == "before_after.png"
    with pytest.raises(UserError, match=f"{case_id}_edited exists: name a new folder"):
        run(case_id, "--circle", x, y, z, "8", "-300")
    file = experiment.raw_folder / "imagesTr" / f"{experiment.train_ids[1]}_0000.nii.gz"
    label = experiment.raw_folder / "labelsTr" / f"{experiment.train_ids[1]}.nii.gz"
    run(str(file), "--mask", str(label), "--hu", "-300")
    assert (tmp_path / f"{experiment.train_ids[1]}_edited" / file.name).is_file()


def test_intensities_that_nnunet_clips_are_warned_of(experiment, tmp_path, capsys):
    case_id = experiment.train_ids[0]
    x, y, z = map(str, lung_voxel(experiment, case_id))
    run(case_id, "--circle", x, y, z, "8", "500", "--output", str(tmp_path / "clipped"))
    facts = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    low, high = round(facts["percentile_00_5"]), round(facts["percentile_99_5"])
    assert f"500 lies outside the {low} to {high} that the synthesizer draws, and is drawn as {high}" in \
        capsys.readouterr().err
    run(case_id, "--circle", x, y, z, "8", str(high), "--output", str(tmp_path / "kept"))
    assert "lies outside" not in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# With real synthesizers, untrained


@pytest.mark.parametrize("synthesizer, options, arguments", [
    (UM2I, {}, ()), (UM2I, {"tasks": "image"}, ("--label-source", "painted")),
    (CS2, {}, ("--synthesizer", "cs2")), (CS2, {}, ("--synthesizer", "cs2", "--label-source", "painted"))], ids=str)
def test_every_synthesizer_that_draws_from_masks_can_edit(planned_dataset, tmp_path, synthesizer, options, arguments):
    experiment = load_experiment(DATASET_ID, "2d", 0)
    save_untrained(synthesizer, **options)
    case_id = experiment.train_ids[0]
    x, y, z = lung_voxel(experiment, case_id)
    run(case_id, "--circle", str(x), str(y), str(z), "9", "-300", "--output", str(tmp_path / "out"), *arguments)
    old, new = (SimpleITK.GetArrayFromImage(image) for image in (
        raw(experiment, case_id), SimpleITK.ReadImage(str(tmp_path / "out" / f"{case_id}_0000.nii.gz"))))
    assert (new[z] != old[z]).any() and np.array_equal(np.delete(new, z, 0), np.delete(old, z, 0))


@pytest.mark.parametrize("synthesizer, options, message", [
    (UM2I, {"superpixels": "cached"}, "cached superpixels or clusters.*--option superpixels=slic"),
    (CS2, {"mask": "cnn"}, "mask=slic"), (UM2I, {"tasks": "image"}, "--label-source painted")], ids=str)
def test_synthesizers_that_cannot_edit_say_so(planned_dataset, tmp_path, synthesizer, options, message):
    experiment = load_experiment(DATASET_ID, "2d", 0)
    save_untrained(synthesizer, **options)
    x, y, z = map(str, lung_voxel(experiment, experiment.train_ids[0]))
    with pytest.raises(UserError, match=message) as error:
        run(experiment.train_ids[0], "--circle", x, y, z, "9", "-300", "--output", str(tmp_path / "out"),
            "--synthesizer", synthesizer.name)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
