"""Every number of every configuration has bounds, and every text its choices or its own check."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import pytest

from nnunet_synth.bounds import Bounds
from nnunet_synth.errors import UserError
from nnunet_synth.mask_sources.labels import V2M
from nnunet_synth.mask_sources.unsupervised import V2UM
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.synthesizers.cs2 import CS2
from nnunet_synth.synthesizers.lcgan import EnhancedPix2Pix, LcGAN
from nnunet_synth.synthesizers.m2i import M2I
from nnunet_synth.synthesizers.options import make_config
from nnunet_synth.synthesizers.sean import SEAN
from nnunet_synth.synthesizers.um2i import UM2I

ALL = (SEAN, UM2I, CS2, CoSinGAN, LcGAN, EnhancedPix2Pix, M2I, V2UM, V2M)
SETTINGS = [(kind, setting.name) for kind in ALL for setting in fields(kind.Config)]


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_no_setting_is_without_bounds(kind: type, name: str) -> None:
    hint = str(get_type_hints(kind.Config)[name])
    wrong = {"bool": "maybe", "str": "nonsense"}.get(hint.partition("'")[2].partition("'")[0])
    for value in [wrong] if wrong else [-3, 10**9, float("nan"), "wide"]:
        value = [value] if "tuple" in hint else value
        with pytest.raises(UserError, match=f"(?s)^(?:option |each value of )?{name}|^slice") as error:
            make_config(kind, "default", {name: value})
        assert "\n" not in str(error.value)


def test_presets_are_within_bounds() -> None:
    assert all(isinstance(preset, kind.Config) for kind in ALL for preset in kind.PRESETS.values())


@pytest.mark.parametrize(("bounds", "text"), [
    (Bounds(low=1), "at least 1"), (Bounds(high=3), "at most 3"), (Bounds(low=0, high=1, open_high=True),
                                                                "at least 0 and below 1"),
    (Bounds(low=1, high=2**32 - 1), "at least 1 and at most 4294967295"),
])
def test_bounds_say_what_they_are(bounds: Bounds, text: str) -> None:
    assert str(bounds) == text
