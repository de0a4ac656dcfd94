from __future__ import annotations

import numpy as np
import pytest

from nnunet_synth.data.hounsfield import not_hounsfield
from tests.makers.volumes import phantom

CHEST = phantom(0, 64, 24).image.astype(np.float32)


@pytest.mark.parametrize("image", [
    CHEST, np.clip(CHEST, -1350, 150), np.clip(CHEST, 0, 80),                           # windows, in HU still
    np.where(CHEST > 200, CHEST, 0), np.where(CHEST > 800, CHEST, 0),                   # bone alone
    np.where(CHEST > -500, CHEST, -3024), np.where(CHEST < -500, CHEST, 0),             # padding; lungs alone
    np.zeros((4, 8, 8)), (CHEST + 1250) / 1500, (np.clip(CHEST, -1250, 250) + 1250) * 255 / 1500,       # odd, not sure
], ids=range(10))
def test_what_may_be_hu_passes(image: np.ndarray) -> None:
    assert not_hounsfield(image) == ""


def test_stored_values_are_told() -> None:
    stored = np.clip(CHEST + 1024, 0, 4095)
    for image in (stored, stored.astype(np.uint16), stored.astype(np.int16)):
        assert "tissue around 1024 instead of 0" in not_hounsfield(image) and "subtract 1024" in not_hounsfield(image)


@pytest.mark.parametrize("factor, shown", [(1e30, "3e+3"), (-1e6, "-")])
def test_numbers_beyond_all_scanners_are_told(factor: float, shown: str) -> None:
    assert shown in not_hounsfield(np.full((2, 2), 30.0) * factor)
    assert "no CT in Hounsfield units" in not_hounsfield(CHEST * factor)
