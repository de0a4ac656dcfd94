"""The real package, its real architecture and loading code; its published weights are 124 MB and are not here."""

import hashlib
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

pytest.importorskip("lungmask")

from lungmask.resunet import UNet

from nnunet_synth.data.lung_network import MODELS, VALUES, _load, find_lungs_by_network, prepare_network
from nnunet_synth.errors import UserError

LEFT, RIGHT = 1, 2
SIZE = 32


def unet(num_classes: int, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(n_classes=num_classes, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[int, Path]:
    """Number of classes → a file of random weights of the package's architecture, as it publishes them."""
    folder = tmp_path_factory.mktemp("weights")
    for num_classes in VALUES:
        torch.save(unet(num_classes).state_dict(), folder / f"{num_classes}.pth")
    return {num_classes: folder / f"{num_classes}.pth" for num_classes in VALUES}


@pytest.fixture(autouse=True)
def _forget():
    _load.cache_clear()


class ByPosition(torch.nn.Module):
    """In place of the network: tells from where a pixel lies in the (canonical) slice, dense or not."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right_half = torch.arange(x.shape[3]) < x.shape[3] // 2         # columns grow to the patient's left
        if self.num_classes == 3:
            classes = torch.where(right_half, 1, 2)[None].expand(x.shape[2], -1)    # the package: right 1, left 2
        else:
            upper = (torch.arange(x.shape[2]) < x.shape[2] // 2)[:, None]
            classes = torch.where(right_half, torch.where(upper, 3, 5), torch.where(upper, 1, 2))
        is_lung = x[:, 0] < 0.4                                         # (HU + 1024) / 1624
        return torch.nn.functional.one_hot(classes * is_lung, self.num_classes).permute(0, 3, 1, 2).float()


def chest() -> np.ndarray:
    """HU with axes S, P, L: two lungs; the left one is smaller and lies further back."""
    hu = np.full((6, 40, 48), -1000.0, np.float32)
    hu[:, 3:37, 3:45] = 40
    hu[1:5, 8:32, 7:20] = -850
    hu[2:5, 14:32, 28:41] = -850
    return hu


@pytest.mark.parametrize("num_classes", [3, 6])
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_left_and_right_are_ours_whatever_the_package_numbers_and_the_axes(weights, num_classes, flips):
    network = prepare_network(weights=weights[num_classes])
    inferer, _ = _load(network)
    inferer.model = ByPosition(num_classes)
    axes = "".join(pair[flipped] for pair, flipped in zip(("SI", "PA", "LR"), flips, strict=True))
    turned = tuple(np.flatnonzero(flips))
    found = np.flip(find_lungs_by_network(np.flip(chest(), turned), axes, network), turned)
    expected = np.zeros(found.shape, np.uint8)
    expected[1:5, 8:32, 7:20], expected[2:5, 14:32, 28:41] = RIGHT, LEFT
    for side in (LEFT, RIGHT):                                  # resampled to 256 x 256 and back: not to the voxel
        ours, right_ones = found == side, expected == side
        assert 2 * (ours & right_ones).sum() > 0.9 * (ours.sum() + right_ones.sum())
        assert not (found[expected == LEFT + RIGHT - side] == side).any()
    assert found.dtype == np.uint8


def test_slices_may_be_any_axis(weights):
    network = prepare_network(weights=weights[3])
    inferer, _ = _load(network)
    inferer.model = ByPosition(3)
    expected = find_lungs_by_network(chest(), "SPL", network)
    np.testing.assert_array_equal(find_lungs_by_network(chest().transpose(2, 0, 1), "LSP", network),
                                  expected.transpose(2, 0, 1))


@pytest.mark.parametrize("num_classes", [3, 6])
def test_the_package_s_own_network_is_loaded_and_runs(weights, num_classes):
    network = prepare_network(weights=weights[num_classes], batch_size=2)
    inferer, values = _load(network)
    expected = unet(num_classes).state_dict()
    assert inferer.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in inferer.model.state_dict().items())
    assert inferer.batch_size == 2 and not inferer.model.training
    hu = np.random.default_rng(0).normal(-400, 400, (2, SIZE, SIZE)).astype(np.float32)
    found = find_lungs_by_network(hu, "SPL", network)
    np.testing.assert_array_equal(found, values[inferer.apply(hu)])
    assert found.shape == hu.shape and found.max() <= RIGHT
    assert network.sha256 == (hashlib.sha256(weights[num_classes].read_bytes()).hexdigest(),)
    assert network.name == weights[num_classes].name


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch, weights) -> Path:
    """Torch's hub folder with files of random weights under names that carry their hash, as the package's do."""
    from lungmask import mask
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    urls = {}
    for name, (url, num_classes) in mask.MODEL_URLS.items():
        content = weights[num_classes].read_bytes()
        file = folder / f"unet_{name.lower()}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        file.write_bytes(content)
        urls[name] = (f"{url.rpartition('/')[0]}/{file.name}", num_classes)
    monkeypatch.setattr(mask, "MODEL_URLS", urls)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_made_of_cached_weights(cache, model):
    network = prepare_network(model)
    inferer, values = _load(network)
    assert network.weights.parent == cache and network.name == model
    assert len(values) == (6 if model.startswith("LTRC") else 3)
    assert (inferer.fillmodelm is not None) == (model == "LTRCLobes_R231") == (len(network.sha256) == 2)
    assert prepare_network() == prepare_network("R231")


def test_the_fused_model_merges_its_lobes(cache):
    network = prepare_network("LTRCLobes_R231")
    inferer, _ = _load(network)
    inferer.model, inferer.fillmodelm = ByPosition(6), ByPosition(3)
    found = find_lungs_by_network(chest(), "SPL", network)
    assert set(np.unique(found)) == {0, LEFT, RIGHT}
    assert (found[2:4, 16:30, 30:39] == LEFT).all() and (found[2:4, 10:30, 9:18] == RIGHT).all()


def test_weights_that_cannot_be_fetched_are_one_line_that_helps(cache, monkeypatch):
    def offline(url, file, hash_prefix):
        raise URLError("Name or service not known")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    file = next(cache.glob("unet_r231-*"))
    file.unlink()
    with pytest.raises(UserError, match="cannot be fetched .*Name or service") as caught:
        prepare_network("R231")
    message = str(caught.value)
    assert "\n" not in message and file.name in message and str(cache) in message
    assert "--weights" in message and "--method threshold" in message and not file.exists()


def test_weights_are_fetched_to_where_the_package_caches_them(cache, monkeypatch):
    file = next(cache.glob("unet_r231-*"))
    content = file.read_bytes()
    file.unlink()
    asked = []

    def download(url, target, hash_prefix):
        asked.append((url.rpartition("/")[2], hash_prefix))
        Path(target).write_bytes(content)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    prepare_network("R231")
    prepare_network("R231")
    assert asked == [(file.name, file.stem.rpartition("-")[2])] and file.read_bytes() == content


def test_damaged_weights_in_the_cache_are_told(cache):
    file = next(cache.glob("unet_r231-*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged .*remove it"):
        prepare_network("R231")


# -- what is refused ---------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
def test_nothing_is_ever_unpickled(tmp_path, save):
    save({"last.bias": Bomb(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="more than weights"):
        prepare_network(weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content, message", [
    ({"last.weight": torch.zeros(3)}, "last layer"), ({"last.bias": torch.zeros(4)}, "last layer"),
    ([torch.zeros(3)], "last layer"), ({"last.bias": torch.zeros(3)}, "another network"),
])
def test_other_weights_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as caught:
        prepare_network(weights=tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_weights_are_refused(tmp_path, weights):
    (tmp_path / "text.pth").write_text("not found")
    (tmp_path / "short.pth").write_bytes(weights[3].read_bytes()[:1000])
    for name, message in (("text.pth", "copy it"), ("short.pth", "copy it"), ("none.pth", "does not exist")):
        with pytest.raises(UserError, match=message):
            prepare_network(weights=tmp_path / name)


@pytest.mark.parametrize("options, message", [
    (dict(model="R232"), "choose one of R231, "), (dict(model="R231", weights="x"), "not both"),
    (dict(batch_size=0), "--batch-size 0"),
])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        prepare_network(**options)


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(UserError, match=r"pip install 'nnunet_synth\[lung\]', or use --method threshold"):
        prepare_network()


def test_the_package_does_not_switch_our_warnings_off():
    code = ("import warnings\nfrom nnunet_synth.data.lung_network import _import_lungmask\n_import_lungmask()\n"
            "assert ('ignore', None, UserWarning, None, 0) not in warnings.filters")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
