"""The pattern index against a dictionary of windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_synth.synthesizers.label_patterns import LabelPatterns, find_label_patterns


def windows_of(patterns: LabelPatterns) -> np.ndarray:
    """[P₅, 5, 5]: the 5×5 windows that the nine 3×3 ones spell, checking that where these overlap they agree."""
    windows = np.full((len(patterns.wide), 5, 5), -1)
    for row, nine in enumerate(patterns.wide.numpy()):
        for place, near in enumerate(nine):
            top, left = divmod(place, 3)
            block = patterns.near[near].numpy().reshape(3, 3)
            seen = windows[row, top:top + 3, left:left + 3]
            assert ((seen == -1) | (seen == block)).all()
            windows[row, top:top + 3, left:left + 3] = block
    return windows


@pytest.mark.parametrize("num_classes", [1, 2, 4, 30, 200])     # 200 classes overflow 64 bits without renumbering
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (3, 16, 24)])
def test_every_pixel_gets_its_own_window_and_no_window_is_listed_twice(num_classes: int,
                                                                       shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=shape)
    labels[:, shape[1] // 2:] = 0                                # half of it uniform, as label maps are
    patterns = find_label_patterns(torch.from_numpy(labels), num_classes)

    padded = np.pad(labels, ((0, 0), (2, 2), (2, 2)), constant_values=num_classes)
    expected = np.stack([[[padded[n, y:y + 5, x:x + 5] for x in range(shape[2])] for y in range(shape[1])]
                         for n in range(shape[0])])
    windows = windows_of(patterns)
    assert (windows[patterns.index.numpy()] == expected).all()
    assert len(windows) == len(np.unique(expected.reshape(-1, 25), axis=0))


def test_neighbourhoods_centred_outside_are_marked() -> None:
    patterns = find_label_patterns(torch.zeros(1, 4, 4, dtype=torch.int64), 1)
    assert patterns.is_inside.tolist() == (patterns.near[:, 4] == 0).tolist()
    assert patterns.is_inside.any() and not patterns.is_inside.all()
