"""Edges against a loop over pixels."""

import numpy as np
import torch

from nnunet_synth.synthesizers.edge_map import edge_map
from tests.reference import um2i as reference


def test_is_that_of_the_reference() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (2, 4, 5)).repeat(2, 1).repeat(3, 2) * 50.0
    edges = edge_map(torch.from_numpy(mask)[:, None])
    assert edges.shape == (2, 1, 8, 15) and edges.dtype == torch.float64
    for one, expected in zip(edges[:, 0].numpy(), mask, strict=True):
        np.testing.assert_array_equal(one, reference.edges(expected))


def test_a_border_in_one_channel_is_enough() -> None:
    mask = torch.zeros(1, 2, 3, 4)
    mask[:, 1, :, 2:] = 1
    assert edge_map(mask)[0, 0].tolist() == [[0, 1, 1, 0]] * 3
    assert not edge_map(torch.full((1, 2, 3, 4), 7.0)).any()
