"""CS2's unsupervised masks (MICCAI 2022, §2.1): a small network is trained on one image to agree with itself on every
superpixel, until few clusters are left.

After A. Kanezaki, "Unsupervised image segmentation by backpropagation", ICASSP 2018. At 512 × 512 that is 2.2 TFLOP a
slice (60 iterations), at 256 × 256 a quarter of it: clusters are found offline and cached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.superpixels import Method, segment


@dataclass(frozen=True)
class ClusterSettings:
    """Of the paper, and where it does not say, of its released code.

    Attributes:
        num_classes: M, clusters to begin with; layers between have `width` channels.
        max_clusters, max_iterations: it stops as soon as no more clusters, or so many iterations, are there.
        learning_rate, momentum: of SGD.
        superpixels: see `superpixels.segment`.
        max_side: pixels; the network sees larger images reduced to this, their superpixels stay as fine as they are.
            The paper's is 512.
    """

    num_classes: int = 32
    width: int = 64
    max_clusters: int = 4
    max_iterations: int = 60
    learning_rate: float = 0.05
    momentum: float = 0.9
    superpixels: Method = "felzenszwalb"
    max_side: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.max_clusters <= self.num_classes <= 127:
            raise UserError(f"{self.max_clusters} clusters out of {self.num_classes}: choose 1 to 127, and no more "
                            "than there are classes")
        if self.max_iterations < 1 or self.max_side < 1:
            raise UserError(f"{self.max_iterations} iterations on at most {self.max_side} pixels: at least 1 is needed")


class ClusterNetwork(nn.Sequential):
    """[N, C, H, W] → [N, M, H, W]; the batch norms make every class as frequent as the others at first."""

    def __init__(self, in_channels: int, num_classes: int = 32, width: int = 64) -> None:
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, num_classes, 1), nn.BatchNorm2d(num_classes), nn.ReLU(),
            nn.Conv2d(num_classes, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, num_classes, 1), nn.BatchNorm2d(num_classes))


def find_clusters(image: Tensor, settings: ClusterSettings = ClusterSettings(), seed: int = 0,
                  network: nn.Module | None = None, superpixels: Tensor | None = None) -> Tensor:
    """The clusters of one image.

    Args:
        image: [C, H, W] float in [0, 1].
        seed: of the network's weights.
        network: instead of a new `ClusterNetwork`; is trained.
        superpixels: [H, W] int64 instead of those of the settings.

    Returns:
        [H, W] int64, numbered from 1 in the order of their mean intensity (of the first channel).
    """
    if superpixels is None:
        superpixels = segment(image[None], settings.superpixels)[0]
    superpixels = torch.unique(superpixels, return_inverse=True)[1]
    if network is None:
        with torch.random.fork_rng([image.device] if image.device.type == "cuda" else []):
            torch.manual_seed(seed)
            network = ClusterNetwork(len(image), settings.num_classes, settings.width).to(image.device)
    reduced = resized(image, *_size_within(*image.shape[1:], settings.max_side), mode="area")
    with torch.enable_grad():
        refined = _agree(network.train(), reduced[None], superpixels, settings)
    return _by_intensity(refined, image[0])


def _size_within(height: int, width: int, max_side: int) -> tuple[int, int]:
    factor = min(1.0, max_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized(maps: Tensor, height: int, width: int, mode: str = "nearest") -> Tensor:
    """[C, H, W] → [C, height, width] float32."""
    maps = maps.float()
    return maps if maps.shape[1:] == (height, width) else F.interpolate(maps[None], (height, width), mode=mode)[0]


def _agree(network: nn.Module, image: Tensor, superpixels: Tensor, settings: ClusterSettings) -> Tensor:
    """Train until few clusters are left in the refined answer, which is returned, [H, W] int64."""
    optimizer = None
    for iteration in range(1, settings.max_iterations + 1):
        output = network(image)
        labels = resized(output.argmax(1), *superpixels.shape)[0].long()
        refined = refine(labels, superpixels, output.shape[1])
        if len(torch.unique(refined)) <= settings.max_clusters or iteration == settings.max_iterations:
            return refined
        if optimizer is None:
            optimizer = torch.optim.SGD(network.parameters(), settings.learning_rate, settings.momentum)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(output, resized(refined[None], *output.shape[2:]).long()).backward()
        optimizer.step()
    raise AssertionError("at least one iteration")


def refine(labels: Tensor, superpixels: Tensor, num_labels: int) -> Tensor:
    """C′ of §2.1: every superpixel gets the label that most of its pixels have, of equally frequent ones the lowest.

    Args:
        labels: [H, W] int64 below `num_labels`.
        superpixels: [H, W] int64 ids from 0.
    """
    num_superpixels = int(superpixels.max()) + 1
    pair = (superpixels * num_labels + labels).flatten()
    counts = torch.bincount(pair, minlength=num_superpixels * num_labels).view(num_superpixels, num_labels)
    return counts.argmax(1)[superpixels]


def _by_intensity(clusters: Tensor, intensity: Tensor) -> Tensor:
    """Numbered from 1, darkest first: which class of the network a cluster was says nothing."""
    present, index = torch.unique(clusters, return_inverse=True)
    number = torch.bincount(index.flatten(), minlength=len(present))
    total = torch.zeros(len(present), dtype=torch.float64, device=clusters.device)
    total.index_add_(0, index.flatten(), intensity.flatten().double())
    rank = torch.empty_like(present)
    rank[(total / number).argsort()] = torch.arange(1, len(present) + 1, device=present.device)
    return rank[index]
