"""nnunet_synth quality: from folders, datasets and synthesizers to the report."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from nnunet_synth.cli import main
from nnunet_synth.commands.quality import Networks, quality
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.errors import UserError
from nnunet_synth.quality import fold_images
from nnunet_synth.quality.classifier import ClassifierOptions
from nnunet_synth.quality.measure import QualityOptions
from nnunet_synth.quality.sources import Selection
from nnunet_synth.synthesizers.base import Slices
from tests.conftest import DATASET_ID
from tests.trainers.runs import save_untrained_sean

FAST = "--resolutions 75 --extractors real-or-synthetic --classifier resnet18 --classifier-steps 2 " \
       "--classifier-resolution 32 --num-probed 2 --device cpu"


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """What a test finds does not depend on the machine's network, and nothing large is downloaded."""
    def refuse(*arguments, **settings):
        raise OSError("no network")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """real, alike and blurred: twelve pictures each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, sigma in (("real", 1.0), ("alike", 1.0), ("blurred", 2.5)):
        (tmp_path / name).mkdir()
        for number in range(12):
            texture = gaussian_filter(rng.normal(0, 1, (32, 32)), sigma)
            picture = np.clip(128 + 40 * texture / texture.std(), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    return tmp_path


def run(line):
    return main(["quality", *line.split()])


def test_folders(folders, capsys):
    assert run(f"real alike smooth=blurred --output out {FAST}") == 0
    said = capsys.readouterr()
    assert "alike (12 images)" in said.out and "smooth (12 images)" in said.out and "out/report.html" in said.out
    assert "warning: fewer images than features" in said.err
    content = json.loads((folders / "out" / "quality.json").read_text())
    assert list(content["sets"]) == ["real", "alike", "smooth"] and content["window"]["high"] == 255
    sharpness = {name: one["measures"]["variance_of_laplacian"]["mean"] for name, one in content["sets"].items()}
    assert sharpness["smooth"] < 0.3 * sharpness["alike"] and sharpness["alike"] == pytest.approx(sharpness["real"],
                                                                                                  rel=0.2)
    assert content["cells"][0]["fid"]["smooth"] > 0 and content["facts"]["compared"] == "real alike smooth=blurred"
    assert (folders / "out" / "report.html").stat().st_size > 10_000


def test_a_report_is_made_anew(folders):
    for _ in range(2):
        assert run(f"real alike --output out {FAST}") == 0
    assert sorted(path.name for path in (folders / "out").iterdir()) == [
        "quality.json", "report.html", "report.json", "report.md", "report_files"]


def test_a_synthesizer_is_compared_with_what_it_learnt(planned_dataset, capsys):
    """Through the encoder of the fold's own network, which is found by itself."""
    save_untrained_sean()
    experiment = load_experiment(DATASET_ID, "2d", 0)
    checkpoint = experiment.results_folder / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0" / "checkpoint_final.pth"
    save_stock(experiment, checkpoint)
    options = QualityOptions(extractors=["segmentation"], resolutions=(75,), num_probed=2,
                             classifier=ClassifierOptions("resnet18", resolution=32))
    found = quality(DATASET_ID, "2d", 0, synthesizers=["sean"], output=planned_dataset / "out",
                    selection=Selection(limit=10, lesions_only=True), options=options, device="cpu")
    real, drawn = found.sets
    assert len(real) == len(drawn) == 10 and real.shape == (1, 32, 32) == drawn.shape
    assert "Dataset701_Tiny 2d fold 0" in found.extractors["segmentation"]
    assert set(real.cases) <= set(experiment.train_ids) and found.window.reason == "lung CT, HU"
    facts = experiment.plans_manager.foreground_intensity_properties_per_channel["0"]
    for one in (real, drawn):       # Hounsfield units again, within what nnU-Net leaves of them
        assert one.images.min() >= facts["percentile_00_5"] - 1 and one.images.max() <= facts["percentile_99_5"] + 1
        assert one.labels.any((1, 2)).all()
    assert found.cells[0].fid["sean"] > 0 and found.kl["sean"] > 0
    assert "sean (10 images)" in capsys.readouterr().out


def save_stock(experiment, checkpoint):
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    dataset_json = json.loads((experiment.preprocessed_folder / "dataset.json").read_text())
    trainer = nnUNetTrainer({**experiment.plans, "continue_training": False}, "2d", 0, dataset_json,
                            torch.device("cpu"))
    trainer.initialize()
    trainer.save_checkpoint(str(checkpoint))


def test_metadata_beside_the_real_dataset_is_used(planned_dataset, monkeypatch):
    monkeypatch.chdir(planned_dataset)
    folder, = (planned_dataset / "nnUNet_raw").iterdir()
    cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in (folder / "imagesTr").iterdir())
    (folder / "metadata.csv").write_text("id,sex\n" + "".join(f"{case},{'FM'[number % 2]}\n"
                                                             for number, case in enumerate(cases)))
    options = QualityOptions(extractors=["sex"], resolutions=(75,), num_probed=1,
                             classifier=ClassifierOptions("resnet18", steps=1, batch_size=4, resolution=32))
    found = quality(DATASET_ID, folder / "imagesTs", output="out", options=options, device="cpu",
                    networks=Networks(), selection=Selection(limit=8))
    assert found.classifiers[0].classes == ["F", "M"] and "sex of the real cases" in found.extractors["sex"]
    assert [one.name for one in found.sets] == ["real", folder.name]


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.fixture
def rare(planned_dataset):
    """The dataset declares a label that no case holds."""
    for path in planned_dataset.rglob("dataset.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "labels": {**content["labels"], "rare": 2}}))
    save_untrained_sean()
    return planned_dataset


def test_lesions_that_no_slice_of_the_fold_holds(rare):
    selection = Selection(limit=2, lesions_only=True, labels=["rare"])
    with pytest.raises(UserError, match="no labelled training slice of fold 0 of Dataset701_Tiny holds label rare"):
        quality(DATASET_ID, "2d", 0, synthesizers=["sean"], output=rare / "out", selection=selection,
                options=QualityOptions(extractors=[]), device="cpu")
    assert not (rare / "out").exists()


def test_lesions_that_a_synthesizer_never_draws(planned_dataset, tmp_path, monkeypatch):
    """As CoSinGAN, which leaves out labels that its slice does not show."""
    monkeypatch.setattr(fold_images, "MAX_MISSES", 1)
    experiment = load_experiment(DATASET_ID, "2d", 0)
    slices = FoldSlices(experiment)
    images = fold_images.FoldImages(experiment, slices, (32, 32), [[-1.0, 1.0]], [1], 2, lesions_only=True)

    def draw(synthesizer, batches):
        for batch in batches:
            yield Slices(batch.image[:1], batch.label[:1] * 0, batch.layout[:1], batch.valid[:1], batch.origin[:1]), \
                batch.image[0].numpy()

    synthesizer = SimpleNamespace(name="blind", fit_pool=lambda slices: None)
    with pytest.raises(UserError, match=f"{len(slices.origins)} images of blind for fold 0 in a row hold no label"):
        images.drawn("blind", synthesizer, draw, tmp_path / "scratch")


@pytest.mark.parametrize("line, words", [
    ("real", "give REAL and one SYNTHETIC or more"),
    ("real real", "real is the same folder as REAL"),
    ("real ./alike/../real", "is the same folder as REAL"),
    ("real alike alike", "is the same folder as alike"),
    ("real real=alike", "two sets are called real"),
    ("real a=alike a=blurred", "two sets are called a: give one another name, NAME=blurred"),
    ("real nowhere", "nowhere is no folder"),
    ("real alike --extractors vgg", "vgg is unknown"),
    ("real alike --extractors segmentation", "--segmentation FOLDER"),
    ("real alike --segmentation alike", "holds neither checkpoint_final.pth"),
    ("real alike --extractors sex", "no metadata tells two classes of sex"),
    ("real alike --metadata nothing.csv", "nothing.csv does not exist"),
    ("real alike --window 3 3", "LOW below HIGH"),
    ("real alike --classifier alexnet", "alexnet is unknown"),
    ("real alike --imagenet inception --imagenet-weights nothing.pth", "nothing.pth does not exist"),
    ("real alike --resolutions 32", "at least 75"),
    ("real alike -n 1", "two images or more"),
    ("real alike --lesions-only", "no labels beside it"),
    ("real alike --synthesizer sean", "DATASET CONFIG FOLD"),
    ("real single", "holds 1 image(s)"),
    ("real small", "have 16 × 16 pixels, those of real 32 × 32"),
    ("real mixed", "mixes images of different sizes"),
])
def test_mistakes_get_one_line(folders, capsys, line, words):
    for name, sizes in (("single", [32]), ("small", [16, 16]), ("mixed", [32, 40])):
        (folders / name).mkdir()
        for number, size in enumerate(sizes):
            picture = np.random.default_rng(number).integers(0, 255, (size, size)).astype(np.uint8)
            Image.fromarray(picture).save(folders / name / f"{number}.png")
    arguments = f"{line} --output out --device cpu".split()
    assert main(["quality", *arguments]) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("nnunet_synth quality: error")]
    assert len(said) == 1 and words in said[0]
    assert not (folders / "out").exists()


def test_without_imagenet_weights_the_rest_is_measured(folders, capsys, monkeypatch):
    from nnunet_synth.quality import imagenet

    def missing(weights_file):
        raise imagenet.MissingError("not here")

    for name in imagenet.NAMES:
        monkeypatch.setitem(imagenet.LOADERS, name, missing)
    line = f"real alike --output out {FAST.replace('--extractors real-or-synthetic', '')}"
    assert run(line) == 0
    assert "warning: no FID and KID" in capsys.readouterr().err
    content = json.loads((folders / "out" / "quality.json").read_text())
    assert content["headline"] is None and "not here" in content["missing_extractors"]["imagenet"]
    assert run(f"{line} --extractors imagenet") == 2
    assert "no ImageNet network can be loaded" in capsys.readouterr().err


def test_a_drawn_dataset_says_in_which_range(folders, capsys):
    """Real pictures reach beyond what nnU-Net lets a synthesizer draw; both are cut off there, unless --window wins."""
    drawn = folders / "Dataset601_Drawn"
    (drawn / "imagesTr").mkdir(parents=True)
    for file in (folders / "alike").iterdir():
        picture = np.clip(np.asarray(Image.open(file)), 90, 160)
        Image.fromarray(picture).save(drawn / "imagesTr" / f"{file.stem}_0000.png")
    (drawn / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "gray"}, "labels": {"background": 0}, "file_ending": ".png",
        "nnunet_synth": {"synthetic": {"intensity_range": [[90.0, 160.0]]}}}))
    assert run(f"real {drawn} --output out {FAST}") == 0
    assert "Intensities: 90 to 160 (the range in which Dataset601_Drawn was drawn)" in capsys.readouterr().out
    assert json.loads((folders / "out" / "quality.json").read_text())["window"]["low"] == 90
    assert run(f"real {drawn} --output out --window 0 255 {FAST}") == 0
    assert json.loads((folders / "out" / "quality.json").read_text())["window"]["low"] == 0
