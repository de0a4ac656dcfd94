"""Slices of a montage as channels."""

import pytest
import torch

from nnunet_synth.synthesizers.tiles import join_tiles, number_tiles, stack_tiles


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 2), (1, 3), (3, 2)])
def test_stacked_and_joined_again(rows: int, columns: int) -> None:
    montage = torch.randn(2, 3, rows * 4, columns * 5)
    stacked = stack_tiles(montage, rows, columns)
    assert stacked.shape == (2, rows * columns * 3, 4, 5)
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        tile = montage[:, :, 4 * row:4 * row + 4, 5 * column:5 * column + 5]
        assert torch.equal(stacked[:, 3 * number:3 * number + 3], tile)
    assert torch.equal(join_tiles(stacked, rows, columns), montage)


def test_numbered_row_by_row() -> None:
    numbers = number_tiles(4, 6, 2, 3, torch.device("cpu"))
    assert numbers.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
