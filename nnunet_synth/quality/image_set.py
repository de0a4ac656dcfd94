"""Images of one origin, all of one size, on disk while they are compared: their number costs no memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nnunet_synth.errors import UserError

SMALLEST = 16           # pixels a side: less shows nothing that could be judged


@dataclass(frozen=True)
class ImageSet:
    """
    Attributes:
        name: what tables call it.
        images: [N, C, H, W] float32 in the unit of the files (HU, gray values); may be a memory map.
        labels: [N, H, W] uint8, the lesions' dataset labels and 0 elsewhere; None = nobody says where lesions are.
        cases: the case that each image belongs to.
        origin: where they come from, in words.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    cases: Sequence[str]
    origin: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[slice]:
        """Slices of the first axis, `size` images each."""
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.shape[1:]


def check_comparable(sets: Sequence[ImageSet]) -> None:
    """Raise UserError unless every set holds two images or more, all of one size and number of channels."""
    first = sets[0]
    for other in sets:
        if len(other) < 2:
            raise UserError(f"{other.name} ({other.origin}) holds {len(other)} image(s): a distance between sets needs "
                            "two or more")
        if other.shape[1:] != first.shape[1:]:
            raise UserError(f"the images of {other.name} have {_size(other.shape)} pixels, those of {first.name} "
                            f"{_size(first.shape)}: sets that show different fields of view cannot be compared; where "
                            f"they do not, resize all with --size {min(first.shape[1:])}")
        if other.shape[0] != first.shape[0]:
            raise UserError(f"the images of {other.name} have {other.shape[0]} channel(s), those of {first.name} "
                            f"{first.shape[0]}: give images of the same kind")


class ImageStore:
    """Gathers the images of one set in a folder.

    Args:
        size: every image is resized to size × size pixels; None = all must have one size.
    """

    def __init__(self, name: str, folder: Path, size: int | None = None) -> None:
        folder.mkdir(parents=True)
        self.name, self.size = name, size
        self.cases: list[str] = []
        self.shape: tuple[int, ...] = ()
        self.has_labels = False
        self._paths = folder / "images.raw", folder / "labels.raw"
        self._files = [open(path, "wb") for path in self._paths]

    def add(self, image: np.ndarray, label: np.ndarray | None, case: str) -> None:
        """One image [C, H, W] and, where they are known, its lesions [H, W].

        Raises:
            UserError: its size or number of channels is not that of the others, or it is smaller than SMALLEST.
        """
        image = np.asarray(image, np.float32)
        label = np.zeros(image.shape[1:], np.uint8) if label is None else np.asarray(label, np.uint8)
        if self.size is not None:
            image, label = resize(image, self.size), resize_labels(label, self.size)
        if min(image.shape[1:]) < SMALLEST:
            raise UserError(f"{case} in {self.name} has {_size(image.shape)} pixels: images need at least {SMALLEST} a "
                            "side")
        if self.shape and image.shape != self.shape:
            raise UserError(f"{self.name} mixes images of different sizes: {case} has {_described(image.shape)}, "
                            f"{self.cases[0]} has {_described(self.shape)}; give images of one size, or --size "
                            f"{min(self.shape[1:])} to resize them")
        self.shape = image.shape
        for file, array in zip(self._files, (image, label), strict=True):
            file.write(np.ascontiguousarray(array).tobytes())
        self.cases.append(case)

    def finish(self, origin: str, has_labels: bool) -> ImageSet:
        """The set, read from the disk when it is looked at.

        Raises:
            UserError: it has fewer than two images.
        """
        for file in self._files:
            file.close()
        if len(self.cases) < 2:
            raise UserError(f"{self.name} ({origin}) holds {len(self.cases)} image(s): a distance between sets needs "
                            "two or more")
        images = np.memmap(self._paths[0], np.float32, "r", shape=(len(self.cases), *self.shape))
        labels = np.memmap(self._paths[1], np.uint8, "r", shape=(len(self.cases), *self.shape[1:]))
        return ImageSet(self.name, images, labels if has_labels else None, self.cases, origin)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """[C, H, W] float32 → [C, side, side]: bilinear, and smoothed where it shrinks."""
    return F.interpolate(torch.from_numpy(image)[None], (side, side), mode="bilinear", antialias=True)[0].numpy()


def resize_labels(label: np.ndarray, side: int) -> np.ndarray:
    """[H, W] → [side, side], each pixel that of the nearest place."""
    return F.interpolate(torch.from_numpy(label)[None, None], (side, side), mode="nearest-exact")[0, 0].numpy()


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-2]} × {shape[-1]}"


def _described(shape: Sequence[int]) -> str:
    return f"{_size(shape)} pixels" + (f" and {shape[0]} channels" if shape[0] > 1 else "")
