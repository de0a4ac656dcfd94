"""Options: what may be changed of a trained synthesizer, judged by what was trained, and values that no one can use."""

from dataclasses import asdict

import pytest

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.synthesizers.options import apply_drawing_options, make_config
from nnunet_synth.testing import contract_meta


def cosingan(**options):
    config = make_config(CoSinGAN, "tiny", {"width": 4, "ndf": 4, **options})
    return CoSinGAN.build(contract_meta("cosingan", asdict(config), 1, 32), config)


# ----------------------------------------------------------------------------------------------------------------------
# Of a trained synthesizer


def test_what_is_possible_depends_on_what_was_trained():
    """The preset that a training began with has a single model; the training had two."""
    two = cosingan(num_models=2)
    apply_drawing_options(two, {"image_fusion": True, "dropout": True})
    assert two.config.image_fusion and two.config.dropout and two.config.num_models == 2 and two.config.width == 4
    assert two.meta.config["image_fusion"] is False, "the description of the training changed"
    two.begin_step(None)
    with pytest.raises(UserError, match="image_fusion mixes the images of two models"):
        apply_drawing_options(cosingan(), {"image_fusion": True})


@pytest.mark.parametrize(("options", "match"), [
    ({"width": 8}, "option width: of a trained cosingan it cannot be changed; what can be: randomised_condition, "),
    ({"nonsense": 8}, "option nonsense: of a trained cosingan it cannot be changed"),
    ({"dropout": 1}, "option dropout of synthesizer cosingan must be bool as in dropout=False, got 1"),
])
def test_other_changes_are_refused_and_change_nothing(options, match):
    model = cosingan()
    before = model.config
    with pytest.raises(UserError, match=match) as error:
        apply_drawing_options(model, {"randomised_condition": False, **options})
    assert "\n" not in str(error.value) and model.config == before
