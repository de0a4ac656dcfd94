"""nnunet_synth pretrain --mask-source, sample --from noise, and montages, as a user runs them, on a tiny dataset."""

import argparse
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from PIL import Image

from nnunet_synth.commands import pretrain, sample
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.errors import UserError
from nnunet_synth.mask_sources import find_mask_source, load_mask_source
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.checkpoint import load_synthesizer, save_meta, save_synthesizer
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.semantic import SemanticClasses
from tests.conftest import DATASET_ID
from tests.mask_sources.toy import SMALL

SMALL_MASKS = [text for key, value in SMALL.items() for text in ("--option", f"{key}={json.dumps(value)}")]
SMALL_UM2I = {"width": 4, "num_blocks": 1, "ndf": 4, "num_segments": 8192}


@pytest.fixture
def experiment(planned_dataset):
    return load_experiment(DATASET_ID, "2d", 0)


@pytest.fixture(autouse=True)
def few_masks(monkeypatch):
    """These tests ask what is measured, not how well."""
    monkeypatch.setattr("nnunet_synth.mask_sources.measures.NUM_MASKS", 16)
    monkeypatch.setattr("nnunet_synth.synthesizers.pretrain.NUM_STATISTICS_IMAGES", 4)


def call(command, *arguments, fold="0"):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(DATASET_ID), "2d", fold, "--device", "cpu", *arguments]))


def pretrain_masks(name, *arguments):
    call(pretrain, "--mask-source", name, "--preset", "tiny", *SMALL_MASKS, *arguments)


def refused(match, command, *arguments):
    with pytest.raises(UserError, match=match) as error:
        call(command, *arguments)
    assert "\n" not in str(error.value)


def save_untrained(experiment, name, montage=(), **changes):
    """A synthesizer or mask source with random weights where the commands look for one; its folder."""
    is_mask_source = name in ("v2um", "v2m")
    trained_class = find_mask_source(name) if is_mask_source else find_synthesizer(name)
    options = SMALL if is_mask_source else SMALL_UM2I if name == "um2i" else {"width": 4} if name == "m2i" else {}
    config = make_config(trained_class, "tiny", {**options, **changes})
    slices = pretrain.training_slices(experiment, montage)
    torch.manual_seed(0)
    meta = replace(pretrain.describe(experiment, slices, trained_class, config, montage=montage),
                   metrics={"finished": True})
    folder = experiment.synthesizer_folder(name)
    save_synthesizer(trained_class.build(meta, config), folder)
    return folder


def stored(folder, kind, name):
    suffix = "_0000" if kind == "imagesTr" else ""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / kind / f"{name}{suffix}.nii.gz")))


# ----------------------------------------------------------------------------------------------------------------------
# Pretraining


def test_a_mask_source_is_trained_on_training_cases_only(experiment, monkeypatch, capsys):
    pretrain._prepare_layouts(experiment)
    read = set()
    original = nnUNetDatasetBlosc2.load_case
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case",
                        lambda self, case_id: (read.add(case_id), original(self, case_id))[1])
    pretrain_masks("v2um")
    assert read == {*experiment.train_ids, *experiment.pool_ids} and not read & set(experiment.val_ids)
    folder = experiment.synthesizer_folder("v2um")
    source = load_mask_source(folder)
    assert source.meta.train_case_ids == experiment.train_ids and source.meta.split_sha256 == experiment.split_sha256
    assert source.meta.patch_size == [32, 32] and source.meta.steps == 4 + 6 + 6 + 6 and source.meta.montage == []
    assert source.meta.metrics["finished"] and {"share_distance", "variety"} <= set(source.meta.metrics)
    output = capsys.readouterr().out
    assert f"mask source: {folder}" in output and "variety" in output and "perceptual" not in output
    refused("already holds.*--force", pretrain, "--mask-source", "v2um", "--preset", "tiny", *SMALL_MASKS)
    before = (folder / "model.safetensors").read_bytes()
    pretrain_masks("v2um", "--c")
    assert (folder / "model.safetensors").read_bytes() == before


def test_montages_are_recorded_and_twice_as_large(experiment):
    pretrain_masks("v2m", "--montage", "2x2", "--steps", "5")
    meta = load_mask_source(experiment.synthesizer_folder("v2m")).meta
    assert meta.montage == [2, 2] and meta.patch_size == [64, 64]
    refused("cannot continue.*montage was .2, 2., is None", pretrain, "--mask-source", "v2m", "--preset", "tiny",
            *SMALL_MASKS, "--steps", "5", "--patch-size", "64", "64", "--c")
    call(pretrain, "--synthesizer", "m2i", "--preset", "tiny", "--option", "width=4", "--steps", "1", "--montage",
         "1x2", "--perceptual", "off", "--batch-size", "2")
    meta = load_synthesizer(experiment.synthesizer_folder("m2i")).meta
    assert meta.montage == [1, 2] and meta.patch_size == [32, 64] and meta.metrics["finished"]


@pytest.mark.parametrize("arguments, match", [
    (("--mask-source", "v2x"), "unknown mask source 'v2x'; known: v2um, v2m"),
    (("--mask-source", "v2um", "--option", "gray_step=300.0"), "gray_step must be at least 0 and at most 255, got 300"),
    (("--mask-source", "v2um", "--option", "num_segments=0"), "num_segments must be at least 1 and .*, got 0"),
    (("--mask-source", "v2um", "--option", "width=3"), "no option 'width'; it has: latent_size"),
    (("--mask-source", "v2m", "--patch-size", "1000", "1000"), "1000 × 1000.*cannot grow"),
    (("--mask-source", "v2m", "--steps", "2"), "at least one step for each of its 4 depths"),
    (("--mask-source", "v2m", "--montage", "2by2"), "--montage 2by2: give rows and columns"),
    (("--mask-source", "v2m", "--montage", "3x3"), "none of the 4 cases has 9 slices"),
    (("--mask-source", "v2m", "--montage", "1x3", "--patch-size", "32", "32"), "cannot be divided into 1 × 3"),
    (("--mask-source", "v2um", "--c"), "nothing to continue"),
])
def test_mistakes_get_one_line_and_leave_nothing(experiment, arguments, match):
    refused(match, pretrain, "--preset", "tiny", *arguments)
    assert not list(experiment.results_folder.rglob("model.safetensors"))


def test_both_at_once_are_refused(experiment):
    with pytest.raises(UserError, match="not both"):
        pretrain.pretrain(DATASET_ID, "2d", 0, synthesizer="m2i", mask_source="v2m", device="cpu")


def test_montages_need_layouts(experiment):
    for folder in (experiment.raw_folder, experiment.preprocessed_folder):
        description = folder / "dataset.json"
        description.write_text(json.dumps({**json.loads(description.read_text()), "nnunet_synth": {}}))
    refused("has no layout.*nnunet_synth layouts", pretrain, "--mask-source", "v2m", "--preset", "tiny", "--montage",
            "2x2")


# ----------------------------------------------------------------------------------------------------------------------
# From noise


def test_unsupervised_masks_become_annotated_images(experiment, tmp_path):
    save_untrained(experiment, "um2i")
    save_untrained(experiment, "v2um")
    call(sample, "--synthesizer", "um2i", "--from", "noise", "-n", "11", "--as-dataset", "803", "--name", "Noise")
    folder = experiment.raw_folder.parent / "Dataset803_Noise"
    verify_dataset_integrity(str(folder), num_processes=1)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["numTraining"] == 11 and content["labels"] == experiment.dataset_json["labels"]
    provenance = content["nnunet_synth"]["synthetic"]
    assert provenance["from"] == "noise" and provenance["mask_source"] == "v2um"
    assert provenance["train_case_ids"] == experiment.train_ids
    # Nobody knows the lungs of what was drawn from noise: no empty maps that claim there are none.
    assert not (folder / "layoutsTr").exists() and content["nnunet_synth"]["layout_labels"] == {}
    assert np.asarray(Image.open(folder / "gallery.png")).shape[1] == 3 * (32 + 4)      # mask, label, synthetic

    # Image and label are what UM2I draws from and sees in these very masks.
    model = load_synthesizer(experiment.synthesizer_folder("um2i"))
    masks = load_mask_source(experiment.synthesizer_folder("v2um"))
    mask = masks.unsupervised(next(masks.endless(0, sample.BATCH_SIZE)))
    image, label = model.from_masks(mask, torch.Generator().manual_seed(0))
    facts = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    for number in range(3):
        name = f"um2i_{number:05d}"
        np.testing.assert_allclose((stored(folder, "imagesTr", name)[0] - facts["mean"]) / facts["std"],
                                   image[number, 0].numpy(), atol=0.51 / facts["std"])
        np.testing.assert_array_equal(stored(folder, "labelsTr", name)[0], label[number].numpy())

    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        call(sample, "--synthesizer", "um2i", "--from", "noise", "-n", "2", "--seed", seed, "--output",
             str(tmp_path / name))
    a, b, c = (stored(tmp_path / name, "imagesTr", "um2i_00001") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("name", ["m2i", "lcgan"])     # SEAN leaves out what it has no style for
def test_label_maps_become_annotated_images(experiment, tmp_path, name):
    save_untrained(experiment, name)
    save_untrained(experiment, "v2m")
    call(sample, "--synthesizer", name, "--from", "noise", "-n", "9", "--output", str(tmp_path / "out"))
    masks = load_mask_source(experiment.synthesizer_folder("v2m"))
    label, layout = masks.maps(next(masks.endless(0, sample.BATCH_SIZE)))
    for number in range(3):
        case = f"{name}_{number:05d}"
        np.testing.assert_array_equal(stored(tmp_path / "out", "labelsTr", case)[0], label[number].numpy())
        np.testing.assert_array_equal(stored(tmp_path / "out", "layoutsTr", case)[0], layout[number].numpy())
    assert len(list((tmp_path / "out" / "imagesTr").iterdir())) == 9
    assert np.asarray(Image.open(tmp_path / "out" / "gallery.png")).shape[1] == 2 * (32 + 4)


def test_no_scan_reaches_a_synthesizer_that_draws_from_noise(experiment, monkeypatch):
    save_untrained(experiment, "m2i")
    save_untrained(experiment, "v2m")
    model = load_synthesizer(experiment.synthesizer_folder("m2i"))
    masks = load_mask_source(experiment.synthesizer_folder("v2m"))
    requests = []
    monkeypatch.setattr(model, "_prepare", lambda request, original=model._prepare: (requests.append(request),
                                                                                     original(request))[1])
    stream = sample.draw_from_noise(model, masks, seed=0)
    next(stream)
    assert requests and all(request.image is None for request in requests)


# ----------------------------------------------------------------------------------------------------------------------
# Montages


@pytest.mark.parametrize("source", ["labels", "noise"])
def test_montages_are_cut_apart_or_kept(experiment, tmp_path, source):
    pretrain._prepare_layouts(experiment)
    save_untrained(experiment, "m2i", montage=[2, 2])
    save_untrained(experiment, "v2m", montage=[2, 2])
    common = ("--synthesizer", "m2i", "--from", source)
    call(sample, *common, "-n", "6", "--output", str(tmp_path / "slices"))
    call(sample, *common, "-n", "2", "--montage", "2x2", "--output", str(tmp_path / "montages"))
    for kind in ("imagesTr", "labelsTr", "layoutsTr"):
        whole = stored(tmp_path / "montages", kind, "m2i_00000")[0]
        assert whole.shape == (64, 64)
        cut = [stored(tmp_path / "slices", kind, f"m2i_{number:05d}")[0] for number in range(4)]
        np.testing.assert_array_equal(np.block([cut[:2], cut[2:]]), whole)
    assert len(list((tmp_path / "slices" / "imagesTr").iterdir())) == 6
    refused("was trained on montages of 2x2: pretrain it with --montage 1x2", sample, *common, "--montage", "1x2",
            "--output", str(tmp_path / "other"))
    refused("--from pool draws single slices", sample, "--synthesizer", "m2i", "--from", "pool", "--output",
            str(tmp_path / "other"))


def test_a_slice_synthesizer_draws_no_montages(experiment, tmp_path):
    save_untrained(experiment, "m2i")
    refused("m2i was trained on single slices: pretrain it with --montage 2x2", sample, "--synthesizer", "m2i",
            "--montage", "2x2", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------------
# What does not fit


def test_mask_sources_that_do_not_fit(experiment, tmp_path, capsys):
    noise = (sample, "--synthesizer", "um2i", "--from", "noise", "--output", str(tmp_path / "out"))
    save_untrained(experiment, "um2i")
    refused("no mask source in .*v2um.*: train one with nnunet_synth pretrain 701 2d 0 --mask-source v2um", *noise)
    save_untrained(experiment, "v2um", gray_step=50.0)
    refused("mask source v2um was trained with gray_step 50, synthesizer um2i with 10", *noise)

    folder = save_untrained(experiment, "v2um")
    meta = load_mask_source(folder).meta
    save_meta(replace(meta, semantic=SemanticClasses.from_labels({"tumour": 1}, {"left_lung": 1, "right_lung": 2})),
              folder)
    refused("mask source v2um was trained with classes .*'tumour'.*, this dataset has .*--mask-source v2um",
            *noise)
    save_meta(replace(meta, train_case_ids=[*meta.train_case_ids, experiment.val_ids[0]]), folder)
    refused(f"mask source v2um was trained on validation case.s. {experiment.val_ids[0]}", *noise)
    save_meta(replace(meta, plans_sha256="0" * 64), folder)
    refused("mask source v2um was trained under another normalisation", *noise)
    save_meta(replace(meta, montage=[2, 2]), folder)
    call(*noise[:-1], str(tmp_path / "warned"), "-n", "1")
    assert "mask source v2um was trained on montages of 2 × 2 slices and is to draw single" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_synthesizers_that_cannot_draw_from_noise(experiment, tmp_path, monkeypatch):
    save_untrained(experiment, "v2um")
    save_untrained(experiment, "um2i", tasks="image")
    noise = (sample, "--from", "noise", "--output", str(tmp_path / "out"), "--synthesizer")
    refused("um2i was trained without a segmentation head", *noise, "um2i")
    save_untrained(experiment, "m2i")
    monkeypatch.setattr(find_synthesizer("m2i"), "needs", frozenset({"image"}))
    refused("m2i needs the image of a scan", *noise, "m2i")


def test_the_configuration_of_a_mask_source_is_read_back(experiment):
    folder = save_untrained(experiment, "v2um", steps_per_depth=[3, 4])
    config = load_mask_source(folder).config
    assert config.steps_per_depth == (3, 4)
    assert json.loads((folder / "meta.json").read_text())["config"] == json.loads(json.dumps(asdict(config)))
