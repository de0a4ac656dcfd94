"""nnunet_synth sample: what it writes is a normal nnU-Net dataset with the intensities that were drawn."""

import argparse
import json

import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from PIL import Image

from nnunet_synth.commands import sample as command
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.dataset_conversion.synthetic import SyntheticWriter
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.checkpoint import load_synthesizer
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from tests.conftest import DATASET_ID
from tests.trainers.runs import save_untrained, save_untrained_sean


@pytest.fixture
def experiment(planned_dataset):
    save_untrained_sean()
    return load_experiment(DATASET_ID, "2d", 0)


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(DATASET_ID), "2d", "0", "--device", "cpu", *arguments]))


def test_labels_as_a_dataset(experiment):
    run("--from", "labels", "-n", "5", "--as-dataset", "801", "--name", "Drawn")
    folder = experiment.raw_folder.parent / "Dataset801_Drawn"
    verify_dataset_integrity(str(folder), num_processes=1)
    content = json.loads((folder / "dataset.json").read_text())
    original = experiment.dataset_json
    assert content["numTraining"] == 5 and content["labels"] == original["labels"]
    assert content["channel_names"] == original["channel_names"] and content["file_ending"] == ".nii.gz"
    provenance = content["nnunet_synth"]["synthetic"]
    assert provenance["synthesizer"] == "sean" and provenance["train_case_ids"] == experiment.train_ids
    assert "Hounsfield" in provenance["intensities"]["CT"]
    facts = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    assert provenance["intensity_range"] == [pytest.approx([facts["percentile_00_5"], facts["percentile_99_5"]],
                                                           abs=0.01)]
    assert len(list((folder / "imagesTr").iterdir())) == len(list((folder / "layoutsTr").iterdir())) == 5
    assert np.asarray(Image.open(folder / "gallery.png")).std() > 10


def test_intensities_labels_and_spacing_survive_the_files(experiment, tmp_path):
    """Read back and normalised by nnU-Net, the image is the one that was drawn."""
    synthesizer = load_synthesizer(experiment.synthesizer_folder("sean"))
    slices = FoldSlices(experiment)
    synthesizer.fit_pool(slices)
    drawn = list(command.draw(synthesizer, command.label_conditions(slices, synthesizer, 3), 3, 3))
    run("-n", "3", "--seed", "3", "--output", str(tmp_path / "out"))
    facts = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    for number, (part, image) in enumerate(drawn):
        name = f"sean_{number:05d}"
        stored = SimpleITK.ReadImage(str(tmp_path / "out" / "imagesTr" / f"{name}_0000.nii.gz"))
        assert stored.GetSize() == (32, 32, 1) and stored.GetPixelID() == SimpleITK.sitkInt16
        assert stored.GetSpacing()[:2] == pytest.approx(experiment.configuration_manager.spacing[::-1])
        raw = SimpleITK.GetArrayFromImage(stored)[0].astype(np.float32)
        again = CTNormalization(intensityproperties=facts).run(raw)
        valid = part.valid[0].numpy()
        # Whole Hounsfield units; nothing else may be lost.
        np.testing.assert_allclose(again[valid], image[0][valid], atol=0.51 / facts["std"])
        assert (raw[~valid] <= facts["percentile_00_5"] + 1).all()
        label, layout = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(
            tmp_path / "out" / kind / f"{name}.nii.gz")))[0] for kind in ("labelsTr", "layoutsTr"))
        assert np.array_equal(label, part.label[0].numpy()) and np.array_equal(layout, part.layout[0].numpy())


def test_pool_draws_lesions_in_the_anatomy_of_unlabelled_scans(experiment, tmp_path):
    synthesizer = load_synthesizer(experiment.synthesizer_folder("sean"))
    conditions = command.pool_conditions(experiment, FoldSlices(experiment), synthesizer, 0)
    batches = [next(conditions) for _ in range(3)]
    assert {case_id for part in batches for case_id, _ in part.origin} <= set(experiment.pool_ids)
    label, layout = (np.concatenate([getattr(part, name).numpy() for part in batches]) for name in ("label", "layout"))
    assert (label > 0).any((1, 2)).mean() > 0.5
    assert (layout[label > 0] > 0).mean() > 0.99        # both are turned with nearest neighbours
    run("--from", "pool", "-n", "9", "--output", str(tmp_path / "pool"))
    assert len(list((tmp_path / "pool" / "imagesTr").iterdir())) == 9


def test_same_seed_same_images(experiment, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("-n", "2", "--seed", seed, "--output", str(tmp_path / name))
    a, b, c = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / name / "imagesTr" /
                                                                    "sean_00001_0000.nii.gz"))) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_pictures(experiment, tmp_path, monkeypatch):
    """A PNG dataset gets 8-bit pictures; a z-score is stretched over them."""
    synthesizer = load_synthesizer(experiment.synthesizer_folder("sean"))
    monkeypatch.setitem(experiment.plans, "image_reader_writer", "NaturalImage2DIO")
    monkeypatch.setitem(experiment.dataset_json, "file_ending", ".png")
    monkeypatch.setitem(experiment.configuration_manager.configuration, "normalization_schemes",
                        ["ZScoreNormalization"])
    part = FoldSlices(experiment).sample(1, (32, 32), np.random.default_rng(0))
    writer = SyntheticWriter(experiment, synthesizer.meta, tmp_path / "png")
    (tmp_path / "png").mkdir()
    (low, high), = synthesizer.meta.intensity_range
    writer.write(part, part.image[0].numpy())
    writer.finish("Dataset802_Png", {})
    image, _ = NaturalImage2DIO().read_images([str(tmp_path / "png" / "imagesTr" / "sean_00000_0000.png")])
    valid = part.valid[0].numpy()
    expected = (part.image[0, 0].numpy() - low) / (high - low) * 255
    np.testing.assert_allclose(image[0, 0][valid], expected[valid], atol=0.51)
    label, _ = NaturalImage2DIO().read_seg(str(tmp_path / "png" / "labelsTr" / "sean_00000.png"))
    assert np.array_equal(label[0, 0], part.label[0].numpy())


@pytest.mark.parametrize("arguments, match", [
    (("--as-dataset", str(DATASET_ID)), "is taken by"),
    (("--as-dataset", "801", "--name", "a/b"), "use letters, digits"),
    (("--output", "/"), "exists: choose another"),
    (("--output", "new", "--synthesizer", "um2i"), "no synthesizer in"),
])
def test_mistakes_get_one_line(experiment, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=match) as error:
        run(*arguments)
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_pool_without_layouts(experiment, tmp_path):
    for path in experiment.layouts_folder.glob("*.b2nd"):
        path.unlink()
    with pytest.raises(UserError, match="no unlabelled slice.*has a layout.*--from labels"):
        run("--from", "pool", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_nothing(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(SyntheticWriter, "finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run("-n", "2", "--output", str(tmp_path / "out"))
    assert not list(tmp_path.glob("*out*"))


def test_two_models_of_a_tiny_training_can_be_mixed(planned_dataset, tmp_path):
    """What may be changed is judged by what was trained, not by the preset, which has one model."""
    meta = save_untrained(CoSinGAN, width=4, num_models=2) / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "preset": "tiny"}))
    run("--synthesizer", "cosingan", "--option", "image_fusion=true", "-n", "1", "--output", str(tmp_path / "drawn"))
    assert len(list((tmp_path / "drawn" / "imagesTr").iterdir())) == 1
