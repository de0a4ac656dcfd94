"""Hyper-parameters: the documented defaults, and mistakes that are named."""

import dataclasses
import json
import subprocess
import sys

import pytest

from nnunet_synth.config import NNUNET_ATTRIBUTES, PRESETS, TrainerConfig
from nnunet_synth.errors import UserError


def test_defaults_are_the_papers_and_leave_the_schedule_to_nnunet():
    config = TrainerConfig.from_plans_configuration({})
    assert (config.synthesizer, config.num_styles) == ("sean", 10)
    assert (config.pseudo_weight, config.synthetic_weight, config.confidence_threshold) == (0.5, 0.5, 0.5)
    assert (config.style_source, config.style_average) == ("pool_positive", "present_only")
    assert (config.pool_slices, config.augment_synthetic, config.label_source) == ("layout", "intensity", "pseudo")
    assert (config.ramp_up_epochs, config.num_rounds, config.mask_outside_layout) == (None, 1, False)
    assert config.momentum == 0.99      # nnU-Net's, though not an attribute there
    assert (config.ema_decay, config.uncertainty_passes, config.teacher_dropout) == (0.99, 8, 0.5)      # UA-MT
    assert (config.weak_view_confidence, config.feature_dropout) == (0.95, 0.5)     # UniMatch
    assert config.num_auxiliary_decoders == 5       # one of each kind of perturbation
    assert config.ensemble_decay == 0.6             # temporal ensembling
    assert (config.cases_at_a_time, config.labels_only_share) == (5, 0.3)           # Semi-Inf-Net's K, and ours
    assert config.consistency_weight is None        # of each competitor, its paper's
    assert config.trainer_attributes() == {}
    assert [config.batch_size, config.unlabelled_batch_size, config.teacher, config.seed, config.synthesizer_from,
            config.synthetic_accept_threshold, config.epochs_over_unlabelled] == [None] * 7


def test_nnunet_attributes_exist_in_nnunet():
    import inspect

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    source = inspect.getsource(nnUNetTrainer.__init__)
    assert all(f"self.{name} = " in source for name in NNUNET_ATTRIBUTES)
    assert {*NNUNET_ATTRIBUTES} < {setting.name for setting in dataclasses.fields(TrainerConfig)}


def test_only_attributes_that_were_set_are_handed_to_nnunet():
    config = TrainerConfig.from_plans_configuration({"num_epochs": 3, "initial_lr": 1, "save_every": None})
    assert config.trainer_attributes() == {"num_epochs": 3, "initial_lr": 1.0}
    assert isinstance(config.initial_lr, float)


@pytest.mark.parametrize("block", [
    {}, PRESETS["paper"], {"synthesizer_options": {"ngf": 16}, "seed": 0, "teacher": "SASTTrainer__nnUNetPlans__2d"},
    {"enable_deep_supervision": False, "probabilistic_oversampling": True, "momentum": 0}])
def test_what_was_written_is_read(block):
    config = TrainerConfig.from_plans_configuration(block)
    assert TrainerConfig.from_plans_configuration(json.loads(json.dumps(config.to_json()))) == config


def test_the_paper_preset():
    paper = TrainerConfig.from_plans_configuration(PRESETS["paper"])
    changed = {key for key, value in paper.to_json().items() if TrainerConfig().to_json().get(key) != value}
    assert changed == {"momentum", "epochs_over_unlabelled", "style_average", "mask_outside_layout",
                       "augment_synthetic", "synthesizer_preset"}
    assert (paper.momentum, paper.epochs_over_unlabelled, paper.style_average) == (0.9, 20, "paper")


@pytest.mark.parametrize(("block", "said"), [
    ({"pseudo_wieght": 0.5}, r"unknown hyper-parameter 'pseudo_wieght'; did you mean pseudo_weight\? known: .*seed"),
    ({"zzz": 1}, r"unknown hyper-parameter 'zzz'; known: "),
    ({"pseudo_weight": -0.1}, "pseudo_weight must be at least 0 and at most 1000000, got -0.1"),
    ({"pseudo_weight": float("nan")}, "pseudo_weight must be a number"),
    ({"synthetic_weight": float("inf")}, "synthetic_weight must be a number"),
    ({"synthetic_weight": "0.5"}, "synthetic_weight must be a number, got '0.5'"),
    ({"pseudo_weight": None}, "pseudo_weight must be a number, got None"),
    ({"confidence_threshold": 0}, "confidence_threshold must be above 0 and below 1"),
    ({"confidence_threshold": 1.0}, "confidence_threshold must be above 0 and below 1"),
    ({"num_styles": 0}, "num_styles must be at least 1"),
    ({"num_styles": 2.5}, "num_styles must be a whole number"),
    ({"num_epochs": True}, "num_epochs must be a whole number or null"),
    ({"mask_outside_layout": 1}, "mask_outside_layout must be true or false"),
    ({"synthesizer": 3}, "synthesizer must be text"),
    ({"synthesizer": ""}, "synthesizer must not be empty"),
    ({"synthesizer_options": [1]}, "synthesizer_options must be an object"),
    ({"style_source": "n"}, "style_source must be one of pool_positive, pool, self, got 'n'"),
    ({"augment_synthetic": "spatial"}, "augment_synthetic must be one of intensity, none"),
    ({"label_source": "heads"}, "label_source must be one of pseudo, head"),
    ({"pool_slices": "lung"}, "pool_slices must be one of layout, all"),
    ({"ema_decay": 1}, "ema_decay must be at least 0 and below 1"),
    ({"input_noise": -0.1}, "input_noise must be at least 0"),
    ({"uncertainty_passes": 0}, "uncertainty_passes must be at least 1"),
    ({"teacher_dropout": 1.0}, "teacher_dropout must be at least 0 and below 1"),
    ({"weak_view_confidence": 1}, "weak_view_confidence must be at least 0 and below 1"),
    ({"feature_dropout": 1.0}, "feature_dropout must be at least 0 and below 1"),
    ({"num_auxiliary_decoders": 0}, "num_auxiliary_decoders must be at least 1"),
    ({"ensemble_decay": 1.0}, "ensemble_decay must be at least 0 and below 1"),
    ({"cases_at_a_time": 0}, "cases_at_a_time must be at least 1"),
    ({"labels_only_share": 1.0}, "labels_only_share must be at least 0 and below 1"),
    ({"consistency_weight": -1}, "consistency_weight must be at least 0"),
    ({"momentum": 1}, "momentum must be at least 0 and below 1"),
    ({"initial_lr": 0}, "initial_lr must be above 0"),
    ({"oversample_foreground_percent": 33}, "oversample_foreground_percent must be at least 0 and at most 1"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"num_epochs": 5, "epochs_over_unlabelled": 5}, "both set"),
])
def test_mistakes_are_named_in_one_line(block, said):
    with pytest.raises(UserError, match=said) as raised:
        TrainerConfig.from_plans_configuration(block)
    assert "\n" not in str(raised.value)


def test_nothing_heavy_is_imported():
    check = "import sys, nnunet_synth.config; sys.exit(bool({'torch', 'nnunetv2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
