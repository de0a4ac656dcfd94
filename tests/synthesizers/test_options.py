"""Options: what may be changed of a trained synthesizer, judged by what was trained, and values that no one can use."""

from dataclasses import asdict

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import SynthRequest
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.synthesizers.lcgan import EnhancedPix2Pix, LcGAN, Pix2Pix
from nnunet_synth.synthesizers.options import apply_drawing_options, make_config
from nnunet_synth.testing import contract_meta


def build(synthesizer, **options):
    config = make_config(synthesizer, "tiny", {"width": 4, "ndf": 4, **options})
    return synthesizer.build(contract_meta(synthesizer.name, asdict(config), 1, 32), config).eval()


def cosingan(**options):
    return build(CoSinGAN, **options)


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


@pytest.mark.parametrize("synthesizer", [LcGAN, Pix2Pix, EnhancedPix2Pix])
def test_pix2pix_draws_with_dropout_where_it_was_trained_with_it(synthesizer):
    model = build(synthesizer, dropout=0.5)
    label = torch.zeros(1, 32, 32, dtype=torch.int64)
    label[:, 8:20, 8:20] = 1

    def draw(seed):
        return model.synthesize(SynthRequest(label=label, generator=torch.Generator().manual_seed(seed))).image

    assert torch.equal(draw(0), draw(1))
    apply_drawing_options(model, {"diversity": "dropout"})
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    with pytest.raises(UserError, match="diversity must be one of none, dropout, got 'noise'"):
        apply_drawing_options(model, {"diversity": "noise"})
    with pytest.raises(UserError, match="diversity dropout needs dropout above 0"):
        apply_drawing_options(build(synthesizer, dropout=0.0), {"diversity": "dropout"})


# ----------------------------------------------------------------------------------------------------------------------
# Values that no one can use


@pytest.mark.parametrize(("synthesizer", "options", "match"), [
    (CoSinGAN, {"width": 0}, "width must be at least 1 .*, got 0"),
    (CoSinGAN, {"ndf": -1}, "ndf must be at least 1 .*, got -1"),
    (CoSinGAN, {"num_models": 0}, "num_models must be at least 1 .*, got 0"),
    (CoSinGAN, {"fitting_steps": 0}, "fitting_steps must be at least 1 .*, got 0"),
    (CoSinGAN, {"restoring_steps": 0}, "restoring_steps must be at least 1 .*, got 0"),
    (CoSinGAN, {"batch_size": 0}, "batch_size must be at least 1 .*, got 0"),
    (CoSinGAN, {"rotation": -5}, "rotation must be at least 0 and at most 180, got -5"),
    (CoSinGAN, {"elastic": float("nan")}, "elastic must be a number, got nan"),
    (CoSinGAN, {"adversarial_weight": float("inf")}, "adversarial_weight must be a number, got inf"),
    (CoSinGAN, {"fitting_lr": 0}, "fitting_lr must be above 0 and at most 10, got 0"),
    (CoSinGAN, {"norm": "layer"}, "norm must be one of instance, batch, got 'layer'"),
    (CoSinGAN, {"max_scale": [64]}, "max_scale must be a whole number or null, got \\[64\\]"),
    (CoSinGAN, {"slices": [1, 2]}, "each value of slices must be text, got 1"),
    (CoSinGAN, {"slices": ["case"]}, "slice 'case' is not of the form CASE:INDEX"),
    (CoSinGAN, {"ms_ssim": "x"}, "ms_ssim must be one of zhao, wang, got 'x'"),
    (CoSinGAN, {"class_weights": ["a", 1, 2]}, "each value of class_weights must be a number, got 'a'"),
    (CoSinGAN, {"class_weights": [1, 2]}, "class_weights are three numbers"),
    (CoSinGAN, {"pixel_weight": -1}, "pixel_weight must be at least 0 .*, got -1"),
    (EnhancedPix2Pix, {"class_weights": [0, -1, 2]}, "class_weights must be at least 0 .*, got -1"),
    (EnhancedPix2Pix, {"ms_ssim": "x"}, "ms_ssim must be one of zhao, wang, got 'x'"),
    (LcGAN, {"width": 0}, "width must be at least 1 .*, got 0"),
    (LcGAN, {"num_steps": 0}, "num_steps must be at least 1 .*, got 0"),
    (LcGAN, {"generator_lr": -1e-3}, "generator_lr must be above 0 .*, got -0.001"),
    (LcGAN, {"norm": "layer"}, "norm must be one of batch, instance, got 'layer'"),
])
def test_values_that_no_training_can_use(synthesizer, options, match):
    with pytest.raises(UserError, match=match) as error:
        make_config(synthesizer, "tiny", options)
    assert "\n" not in str(error.value)


def test_class_weights_may_be_whole_numbers():
    """JSON writes 1.0 as 1; the weights of a loss are floats all the same."""
    stage = build(CoSinGAN, class_weights=[0, 1, 2]).stages()[0]
    assert stage.reconstruction.class_weights.dtype == torch.float32
