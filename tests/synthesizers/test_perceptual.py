"""VGG19's five taps, offline."""

import socket
from urllib.error import URLError

import pytest
import torch
from torchvision.models import vgg19

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import perceptual
from nnunet_synth.synthesizers.perceptual import VGG19Features, load_vgg19


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return vgg19(weights=None).eval()


def test_taps_are_relu_x_1(network):
    features = VGG19Features(network.state_dict())
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    found = features(image)
    assert [tuple(tap.shape[1:]) for tap in found] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4),
                                                       (512, 2, 2)]
    # By torchvision's own network: the first ReLU, and the first after each max pooling.
    x, wanted, after_pool = image, [], True
    with torch.no_grad():
        for layer in network.features:
            x = layer(x.clone())
            if isinstance(layer, torch.nn.MaxPool2d):
                after_pool = True
            elif isinstance(layer, torch.nn.ReLU) and after_pool:
                wanted.append(x.clone())
                after_pool = False
    for tap, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(tap, expected)


def test_gray_channels_are_pictures_of_their_own(network):
    features = VGG19Features(network.state_dict())
    image = torch.rand(1, 2, 32, 32)
    both = features(image)[1]
    for channel in range(2):
        torch.testing.assert_close(both[channel], features(image[:, channel:channel + 1].repeat(1, 3, 1, 1))[1][0])


def test_gradients_reach_the_image_and_no_weight(network):
    features = VGG19Features(network.state_dict())
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    sum(tap.mean() for tap in features(image)).backward()
    assert image.grad.abs().sum() > 0 and all(p.grad is None for p in features.parameters())
    assert not features.training


def test_weights_from_a_file(network, tmp_path):
    features = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("features.")}
    torch.save(features, tmp_path / "vgg.pth")      # the classifier is 500 MB and never used
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(load_vgg19(tmp_path / "vgg.pth")(image), VGG19Features(network.state_dict())(image))
    torch.save({"something": torch.zeros(3)}, tmp_path / "else.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("else.pth", "text.pth", "missing.pth"):
        with pytest.raises(UserError, match="vgg19-dcbb9e9d.pth") as error:
            load_vgg19(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [URLError("no route"), TimeoutError(), OSError("full"), RuntimeError("bad hash")])
def test_without_internet_there_are_no_features_and_no_hanging(error, monkeypatch):
    timeouts = []

    def fail(*args, **kwargs):
        assert kwargs["weights_only"] and kwargs["check_hash"]
        timeouts.append(socket.getdefaulttimeout())
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    before = socket.getdefaulttimeout()
    assert load_vgg19() is None
    assert timeouts == [perceptual.SECONDS_TO_WAIT] and socket.getdefaulttimeout() == before
