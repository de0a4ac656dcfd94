"""Networks trained on ImageNet: the right weights in the right places, and no code from files."""

import os
import pickle
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_synth.errors import UserError
from nnunet_synth.quality import imagenet
from nnunet_synth.quality.imagenet import LITE0_FILE, LITE0_PACKAGE, MissingError, as_colours, load_imagenet
from nnunet_synth.quality.window import Window

WINDOW = Window(0.0, 255.0)
CATS = {281, 282, 283, 284, 285, 287}       # tabby, tiger cat, Persian, Siamese, Egyptian cat, lynx
ESPRESSO_OR_CUP = {967, 968}


@pytest.fixture
def lite0_file():
    try:
        return distribution(LITE0_PACKAGE).locate_file(LITE0_FILE)
    except PackageNotFoundError:
        pytest.skip("the extra nnunet_synth[eval] is not installed")


def photograph(name):
    """[1, 3, H, W] from scikit-image, the square in its middle."""
    skimage = pytest.importorskip("skimage")
    picture = np.asarray(Image.open(os.path.join(os.path.dirname(skimage.__file__), "data", f"{name}.png")))
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return np.moveaxis(picture[top:top + side, left:left + side], -1, 0)[None].astype(np.float32)


def test_efficientnet_lite0_knows_a_cat_and_a_coffee(lite0_file):
    """The features, put through the last layer that the extractor leaves out."""
    extractor = load_imagenet("efficientnet-lite0", WINDOW)
    assert "EfficientNet-Lite0" in extractor.description and "ImageNet" in extractor.description
    state = torch.load(lite0_file, weights_only=True)
    for name, classes in (("chelsea", CATS), ("coffee", ESPRESSO_OR_CUP)):
        features = extractor(photograph(name), extractor.native)
        assert features.shape == (1, 1280)
        logits = torch.from_numpy(features) @ state["_fc.weight"].T + state["_fc.bias"]
        assert int(logits.argmax()) in classes


def test_resolution_matters_and_batches_do_not(lite0_file):
    extractor = load_imagenet("efficientnet-lite0", WINDOW)
    images = np.random.default_rng(0).uniform(0, 255, (3, 1, 40, 40)).astype(np.float32)
    both = extractor(images, 96)
    np.testing.assert_allclose(extractor(images[1:2], 96), both[1:2], rtol=1e-3, atol=1e-5)
    assert both.shape == (3, 1280) and not np.allclose(both, extractor(images, 128), rtol=0.1)


def test_gray_images_become_colours():
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(as_colours(images), images.expand(-1, 3, -1, -1))
    assert as_colours(torch.rand(2, 3, 4, 4)).shape == as_colours(torch.rand(2, 4, 4, 4)).shape == (2, 3, 4, 4)


def test_inception_from_a_file(tmp_path):
    from torchvision.models import inception_v3
    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False, transform_input=False)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    extractor = load_imagenet("inception", WINDOW, weights_file=tmp_path / "inception.pth")
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 96, 96)).astype(np.float32)
    found = extractor(images, 96)
    network.eval().AuxLogits, network.fc = None, torch.nn.Identity()
    mean, deviation = (np.array(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        wanted = network(torch.from_numpy((images / 255 - mean) / deviation).float())
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="does not hold the weights of this network"):
        torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
        load_imagenet("inception", WINDOW, weights_file=tmp_path / "other.pth")


def test_the_inception_of_published_fids(tmp_path, monkeypatch):
    """With random weights: at 299 pixels it is torch-fidelity's own, and other resolutions are not brought to 299."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    torch.save({}, tmp_path / "none.pth")
    with monkeypatch.context() as patch:
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *arguments: None)
        network = theirs.FeatureExtractorInceptionV3("fid", ["2048"], str(tmp_path / "none.pth"))
    torch.save(network.state_dict(), tmp_path / "fid.pth")
    extractor = load_imagenet("fid-inception", WINDOW, weights_file=tmp_path / "fid.pth")
    images = np.random.default_rng(0).integers(0, 255, (1, 3, 299, 299)).astype(np.float32)
    wanted, = network(torch.from_numpy(images).to(torch.uint8))
    np.testing.assert_allclose(extractor(images, 299), wanted, rtol=1e-4, atol=1e-5)
    assert not np.allclose(extractor(images, 128), wanted, rtol=0.01)


# ----------------------------------------------------------------------------------------------------------------------
# Weights that cannot be had


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def test_auto_takes_the_first_that_can_be_had(lite0_file, offline):
    assert "EfficientNet-Lite0" in load_imagenet("auto", WINDOW).description


def test_without_any_weights_the_reasons_are_told_in_one_line(offline, monkeypatch):
    def missing(weights_file):
        raise MissingError("the package is not installed")

    monkeypatch.setitem(imagenet.LOADERS, "efficientnet-lite0", missing)
    reasons = "inception.*cannot be downloaded.*efficientnet-lite0: the package is not installed"
    with pytest.raises(UserError, match=rf"no ImageNet network.*{reasons}.*nnunet_synth\[eval\]") as error:
        load_imagenet("auto", WINDOW)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="inception_v3_google.*cannot be downloaded"):
        load_imagenet("inception", WINDOW)


@pytest.mark.parametrize("choice, file, words", [
    ("vgg", None, "--imagenet vgg is unknown; known: auto, fid-inception, inception, efficientnet-lite0"),
    ("auto", "x.pth", "say with --imagenet which network"),
    ("efficientnet-lite0", "missing.pth", "missing.pth does not exist"),
    ("efficientnet-lite0", "text.pth", "text.pth cannot be read as weights"),
    ("efficientnet-lite0", "more.pth", "holds more than the weights"),
    ("efficientnet-lite0", "other.pth", "does not hold EfficientNet-Lite0"),
])
def test_mistakes_get_one_line(tmp_path, monkeypatch, choice, file, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "more.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=words) as error:
        load_imagenet(choice, WINDOW, weights_file=file)
    assert "\n" not in str(error.value)


class Malice:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("choice", imagenet.NAMES)
def test_nothing_is_unpickled(tmp_path, monkeypatch, choice):
    if choice == "fid-inception":
        pytest.importorskip("torch_fidelity")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": Malice()}))
    torch.save({"weight": Malice()}, tmp_path / "evil_too.pth")
    for file in ("evil.pth", "evil_too.pth"):
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_imagenet(choice, WINDOW, weights_file=file)
    assert not (tmp_path / "executed").exists()
