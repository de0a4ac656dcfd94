"""Networks trained on the spot to tell classes of images apart: UM2I's P₂ and P₃ (sex, age group) and P₄ (real against
synthetic). Their features know what is particular to these images, which those of ImageNet do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.progress import progress
from nnunet_synth.quality.extractor import Extractor, batch_size_for, resize_batch
from nnunet_synth.quality.image_set import ImageSet
from nnunet_synth.quality.window import Window

HELD_OUT = 0.2              # share of the cases of each class that only tell how well the network does
LEARNING_RATE = 1e-3
MAX_ROTATION = np.deg2rad(15)
MAX_SHIFT = 0.1             # of the side
ZOOM = (1.0, 1.25)          # a crop is a magnified part
MAX_NOISE = 0.03            # of the intensity window


@dataclass(frozen=True)
class ClassifierOptions:
    """
    Attributes:
        network: one of NETWORKS; UM2I's is Inception v3, LcGAN's GoogLeNet.
        steps: of training.
        batch_size: images a step, every class equally often.
        resolution: pixels a side during training (UM2I's is 1024); None = the images stay as they are.
        seed: of weights, batches and augmentation.
    """

    network: str = "inception_v3"
    steps: int = 300
    batch_size: int = 16
    resolution: int | None = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise UserError(f"--classifier {self.network} is unknown; known: {', '.join(NETWORKS)}")
        smallest = NETWORKS[self.network][1]
        if self.resolution is not None and self.resolution < smallest:
            raise UserError(f"--classifier-resolution {self.resolution}: {self.network} needs {smallest} or more")
        for name, number in (("steps", self.steps), ("batch-size", self.batch_size)):
            if number < 1:
                raise UserError(f"--classifier-{name} {number}: must be at least 1")


@dataclass(frozen=True)
class Example:
    """One image to learn from: where it lies, its class, and its case, which is not divided between parts."""

    images: ImageSet
    index: int
    target: int
    case: str


@dataclass(frozen=True)
class TrainedClassifier:
    """
    Attributes:
        extractor: its features.
        classes: their names.
        accuracy: mean over the classes of the share of held-out images that are recognised (chance: 1 / classes);
            NaN where a class has too few cases to hold one out.
        losses: cross entropy of every step.
    """

    extractor: Extractor
    classes: list[str]
    accuracy: float
    losses: list[float]


def train_classifier(name: str, task: str, examples: Sequence[Example], classes: Sequence[str], window: Window,
                     options: ClassifierOptions, device: str = "cpu") -> TrainedClassifier:
    """Train a network to name the class of an image, by `fit`, and see how well it does on cases held out.

    Args:
        name: of the extractor.
        task: what it learns, for the description.

    Raises:
        UserError: a loss that is not finite.
    """
    rng = np.random.default_rng([options.seed, len(classes)])
    training, held_out = _split(examples, rng)
    network, losses = fit(task, training, len(classes), window, options, device, rng)
    accuracy = _accuracy(network, held_out, len(classes), window, options.resolution, device)
    description = f"{options.network} trained on {task} ({', '.join(classes)}), {options.steps} steps at " \
                  f"{options.resolution}²"
    network.fc = nn.Identity()          # what is left are the averaged maps that the last layer saw
    extractor = Extractor(name, description, network, lambda images: _centred(images, window))
    return TrainedClassifier(extractor, list(classes), accuracy, losses)


def fit(task: str, training: Sequence[Example], num_classes: int, window: Window, options: ClassifierOptions,
        device: str, rng: np.random.Generator,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None) -> tuple[nn.Module, list[float]]:
    """Train a network without any weights to start from; returns it in eval mode, frozen, and the loss of every step.

    Adam with a cosine decay. The global random numbers are left alone.

    Args:
        rng: draws the batches.
        augment: changes a batch; by default crops, shifts, rotation and noise as UM2I says (its amounts are not given).

    Raises:
        UserError: a loss that is not finite.
    """
    num_channels = training[0].images.shape[0]
    accelerators = [torch.device(device)] if torch.device(device).type == "cuda" else []
    losses = []
    with torch.random.fork_rng(accelerators):       # weights and dropout
        torch.manual_seed(options.seed)
        network = make_network(options.network, num_channels, num_classes).train().to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        generator = torch.Generator(device).manual_seed(options.seed)
        for _ in progress(range(options.steps), f"training {task}"):
            batch = _balanced(training, options.batch_size, rng)
            images = (augment or _augment)(_load(batch, window, options.resolution, device), generator)
            target = torch.tensor([example.target for example in batch], device=device)
            loss = F.cross_entropy(network(images), target)
            if not torch.isfinite(loss):
                raise UserError(f"training {task} diverged: use another --seed")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return network.eval().requires_grad_(False), losses


# ----------------------------------------------------------------------------------------------------------------------
# Networks


def _inception_v3(num_channels: int, num_classes: int) -> nn.Module:
    from torchvision.models import inception_v3
    network = inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=False,
                           num_classes=num_classes)
    network.Conv2d_1a_3x3.conv = nn.Conv2d(num_channels, 32, 3, stride=2, bias=False)
    return network


def _resnet18(num_channels: int, num_classes: int) -> nn.Module:
    from torchvision.models import resnet18
    network = resnet18(weights=None, num_classes=num_classes)
    network.conv1 = nn.Conv2d(num_channels, 64, 7, stride=2, padding=3, bias=False)
    return network


def _googlenet(num_channels: int, num_classes: int) -> nn.Module:
    from torchvision.models import googlenet
    network = googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=False,
                        num_classes=num_classes)
    network.conv1.conv = nn.Conv2d(num_channels, 64, 7, stride=2, padding=3, bias=False)
    return network


# And the smallest image that each takes.
NETWORKS = {"inception_v3": (_inception_v3, 75), "resnet18": (_resnet18, 32), "googlenet": (_googlenet, 32)}


def make_network(name: str, num_channels: int, num_classes: int) -> nn.Module:
    """One of NETWORKS: images [N, C, H, W] in [-1, 1] → logits [N, K], with random weights."""
    return NETWORKS[name][0](num_channels, num_classes)


# ----------------------------------------------------------------------------------------------------------------------
# Images


def _centred(images: Tensor, window: Window) -> Tensor:
    return window.to_unit(images) * 2 - 1


def _load(examples: Sequence[Example], window: Window, resolution: int | None, device: str) -> Tensor:
    """[N, C, resolution, resolution], or the size that they have, in [-1, 1]."""
    images = np.stack([example.images.images[example.index] for example in examples])
    centred = _centred(torch.from_numpy(images).to(device), window)
    return centred if resolution is None else resize_batch(centred, resolution)


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, shifted, magnified and made noisy at random; outside it is black (-1)."""
    number, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(number, device=device, generator=generator)

    angle, zoom = uniform(-MAX_ROTATION, MAX_ROTATION), uniform(*ZOOM)
    # grid_sample looks up, for every pixel of the result, where it comes from; its unit is half a side.
    right, down = (2 * uniform(-MAX_SHIFT, MAX_SHIFT) for _ in range(2))
    matrix = torch.stack([torch.stack([angle.cos() / zoom, -angle.sin() / zoom, right], 1),
                          torch.stack([angle.sin() / zoom, angle.cos() / zoom, down], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = F.grid_sample(images + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1
    noise = torch.randn(images.shape, device=device, generator=generator)
    return turned + noise * 2 * uniform(0, MAX_NOISE)[:, None, None, None]


# ----------------------------------------------------------------------------------------------------------------------
# What is learnt from, and what is held out


def _split(examples: Sequence[Example], rng: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Learnt from and held out, whole cases each; of a class with a single case nothing is held out."""
    training, held_out = [], []
    for target in sorted({example.target for example in examples}):
        of_class = [example for example in examples if example.target == target]
        cases = sorted({example.case for example in of_class})
        number = max(1, round(HELD_OUT * len(cases))) if len(cases) > 1 else 0
        chosen = set(rng.permutation(cases)[:number].tolist())
        training += [example for example in of_class if example.case not in chosen]
        held_out += [example for example in of_class if example.case in chosen]
    return training, held_out


def _balanced(examples: Sequence[Example], number: int, rng: np.random.Generator) -> list[Example]:
    """Every class equally often (as nearly as `number` allows), its images at random."""
    by_class = [[example for example in examples if example.target == target]
                for target in sorted({example.target for example in examples})]
    start = rng.integers(len(by_class))
    chosen = [by_class[(start + place) % len(by_class)] for place in range(number)]
    return [pool[rng.integers(len(pool))] for pool in chosen]


@torch.no_grad()
def _accuracy(network: nn.Module, examples: Sequence[Example], num_classes: int, window: Window, resolution: int,
              device: str) -> float:
    """Mean over the classes of the share that is recognised; NaN unless each has an example."""
    right = [[] for _ in range(num_classes)]
    for batch in _parts(examples, batch_size_for(resolution)):
        found = network(_load(batch, window, resolution, device)).argmax(1).tolist()
        for example, target in zip(batch, found, strict=True):
            right[example.target].append(example.target == target)
    return float(np.mean([np.mean(of_class) for of_class in right])) if all(right) else float("nan")


def _parts(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[start:start + size] for start in range(0, len(examples), size))
