"""CS2's clusters: refinement and means against the slow reference, when the training stops, what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

from nnunet_synth.data.cluster_network import (
    ClusterNetwork,
    ClusterSettings,
    find_clusters,
    refine,
)
from nnunet_synth.errors import UserError
from nnunet_synth.superpixels import paint, segment_means
from tests.reference import cs2 as published

SIZE = 24
BLOCKS = torch.arange(36).view(6, 6).repeat_interleave(4, 0).repeat_interleave(4, 1)        # superpixels of 4 × 4


def piecewise(num_parts: int = 4, noise: float = 0.02, seed: int = 0) -> tuple[Tensor, Tensor]:
    """image [1, H, W] in [0, 1] of as many vertical stripes, and the stripes [H, W]."""
    stripes = (torch.arange(SIZE) * num_parts // SIZE).expand(SIZE, SIZE)
    rng = torch.Generator().manual_seed(seed)
    return ((stripes + 0.5) / num_parts + noise * torch.randn(SIZE, SIZE, generator=rng)).clamp(0, 1)[None], stripes


def test_refined_labels_are_the_mode_of_each_superpixel() -> None:
    rng = np.random.default_rng(0)
    superpixels = rng.integers(0, 30, (SIZE, SIZE))
    labels = rng.integers(0, 5, (SIZE, SIZE))
    found = refine(torch.from_numpy(labels), torch.from_numpy(superpixels), num_labels=5).numpy()
    np.testing.assert_array_equal(found, published.refined(labels, superpixels))
    counts = [np.sort(np.bincount(labels[superpixels == m], minlength=5)) for m in range(30)]
    assert any(most[-1] == most[-2] for most in counts)         # the rule for equals was tried, too
    for m in range(30):
        assert len(np.unique(found[superpixels == m])) == 1


def test_mean_assignment_is_scipys() -> None:
    """With the means that the synthesizer recomputes on the device."""
    rng = np.random.default_rng(1)
    image, clusters = rng.normal(-500, 300, (2, SIZE, SIZE)), rng.integers(0, 5, (2, SIZE, SIZE))
    means = segment_means(torch.from_numpy(image)[:, None], torch.from_numpy(clusters), 7)
    assigned = paint(means, torch.from_numpy(clusters))
    for number in range(2):
        expected = scipy.ndimage.mean(image[number], clusters[number], range(5))
        np.testing.assert_allclose(means[number, 0, :5].numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(assigned[number, 0].numpy(),
                                   published.mean_assignment(image[number], clusters[number]), rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# When it stops


class Scripted(nn.Module):
    """Answers with `num_labels[k]` labels at its k-th call, the last entry from then on; counts calls and steps."""

    def __init__(self, num_labels: list[int], num_classes: int = 32) -> None:
        super().__init__()
        self.num_labels, self.num_classes = num_labels, num_classes
        self.calls, self.weights = 0, []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        wanted = self.num_labels[min(self.calls, len(self.num_labels) - 1)]
        self.calls += 1
        self.weights.append(self.weight.item())
        labels = BLOCKS % wanted
        logits = nn.functional.one_hot(labels, self.num_classes).movedim(-1, 0)[None].float()
        return logits + self.weight * torch.linspace(0, 1e-3, self.num_classes)[:, None, None]


@pytest.mark.parametrize("num_labels, calls", [
    ([9, 7, 5, 4], 4),          # reaches four
    ([9, 7, 3], 3),             # falls below it
    ([4], 1),
    ([5], 60),                  # never: 60 iterations
    ([9] * 59 + [4], 60),
    ([9] * 60 + [4], 60),
])
def test_it_stops_at_four_clusters_or_sixty_iterations(num_labels: list[int], calls: int) -> None:
    network = Scripted(num_labels)
    clusters = find_clusters(piecewise()[0], network=network, superpixels=BLOCKS)
    assert network.calls == calls
    assert len(clusters.unique()) == num_labels[min(calls, len(num_labels)) - 1]
    assert len(set(network.weights)) == calls       # a step of the optimizer between any two


def test_the_clusters_that_count_are_the_refined_ones() -> None:
    """Speckles beyond four labels do not keep it going."""
    class Speckled(Scripted):
        def forward(self, image: Tensor) -> Tensor:
            logits = super().forward(image)
            logits[:, 20, ::4, ::4] = 5
            return logits

    network = Speckled([4])
    clusters = find_clusters(piecewise()[0], network=network, superpixels=BLOCKS)
    assert network.calls == 1 and len(clusters.unique()) == 4


# ----------------------------------------------------------------------------------------------------------------------
# What comes out


@pytest.mark.parametrize("max_side", [24, 12])
def test_the_network_finds_what_is_there(max_side: int) -> None:
    """Also where it sees the image at half its size; borders stay those of the superpixels."""
    image, stripes = piecewise(4)
    clusters = find_clusters(image, ClusterSettings(max_side=max_side), superpixels=BLOCKS)
    for m in range(36):
        assert len(clusters[BLOCKS == m].unique()) == 1
    assert set(clusters[stripes == 0].tolist()).isdisjoint(clusters[stripes == 3].tolist())
    means = published.mean_assignment(image[0].numpy(), clusters.numpy())
    assert ((image[0].numpy() - means) ** 2).mean() < 0.15 * image.var(correction=0)


def test_the_network_sees_large_images_reduced() -> None:
    class Sized(Scripted):
        def forward(self, image: Tensor) -> Tensor:
            assert image.shape == (1, 1, 12, 6)
            assert image[0, 0, 0, 0].item() == pytest.approx(picture[0, :2, :2].mean().item())
            return super().forward(image)[:, :, ::2, ::2][:, :, :, :6]

    picture = torch.rand(1, 24, 12)
    network = Sized([9, 7, 4])
    clusters = find_clusters(picture, ClusterSettings(max_side=12), network=network, superpixels=BLOCKS[:, :12])
    assert network.calls == 3 and clusters.shape == (24, 12)


def test_clusters_are_numbered_from_dark_to_bright() -> None:
    image, _ = piecewise(6)
    clusters = find_clusters(image, ClusterSettings(max_iterations=3), superpixels=BLOCKS)
    present = clusters.unique()
    assert present.tolist() == list(range(1, len(present) + 1))
    means = [image[0][clusters == cluster].mean() for cluster in present]
    assert means == sorted(means)


def test_it_depends_on_its_seed_and_leaves_all_else_alone() -> None:
    image = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    settings = ClusterSettings(max_iterations=2)
    before = torch.get_rng_state()
    first = find_clusters(image, settings, seed=1, superpixels=BLOCKS)
    torch.rand(3)
    assert torch.equal(first, find_clusters(image, settings, seed=1, superpixels=BLOCKS))
    assert not torch.equal(first, find_clusters(image, settings, seed=2, superpixels=BLOCKS))
    torch.set_rng_state(before)
    find_clusters(image, settings, superpixels=BLOCKS)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():                   # it trains wherever it is called
        assert torch.equal(first, find_clusters(image, settings, seed=1, superpixels=BLOCKS))


def test_published_architecture() -> None:
    network = ClusterNetwork(1)
    assert network(torch.rand(1, 1, 8, 8)).shape == (1, 32, 8, 8)
    convolutions = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in network
                    if isinstance(layer, nn.Conv2d)]
    assert convolutions == [(1, 64, 3), (64, 32, 1), (32, 64, 3), (64, 32, 1)]


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"max_clusters": 0}, {"max_clusters": 33}, {"num_classes": 128}):
        with pytest.raises(UserError, match="clusters"):
            ClusterSettings(**wrong)
    with pytest.raises(UserError, match="iterations"):
        ClusterSettings(max_iterations=0)
    with pytest.raises(UserError, match="pixels"):
        ClusterSettings(max_side=0)
