"""Give hyper-parameters a name: add a configuration to nnU-Net's plans that inherits from an existing one.

`nnUNetv2_train DATASET NAME FOLD -tr SACPSTrainer` then trains with them, into a results folder of its own. The data
of the inherited configuration are used as they are: nothing has to be preprocessed again.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from nnunet_synth.errors import UserError

EXAMPLE = "nnunet_synth configure 501 2d --name 2d_paper --preset paper --set epochs_over_unlabelled=10 seed=1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from nnunet_synth.config import PRESETS
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("configuration", metavar="CONFIG", help="configuration to inherit from: 2d, 3d_fullres, …")
    parser.add_argument("--name", required=True, help="name of the new configuration")
    parser.add_argument("--preset", choices=sorted(PRESETS),
                        help="start from these: paper = all of SA-CPS as published on COVID-19-20 (for MosMedData add "
                             "--set epochs_over_unlabelled=10)")
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
                        help="hyper-parameters; values are JSON, or else text")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a configuration made by this command")


def run(args: argparse.Namespace) -> None:
    from nnunet_synth.synthesizers.options import parse_options
    configure(args.dataset, args.configuration, args.name, args.preset, parse_options(args.settings), args.plans,
              args.force)


def configure(dataset: str | int, configuration: str, name: str, preset: str | None = None,
              settings: Mapping[str, Any] | None = None, plans: str = "nnUNetPlans", force: bool = False) -> None:
    """Add configuration `name` to the plans and print how to train with it.

    Its block holds every hyper-parameter, because nnU-Net merges inherited configurations shallowly: the defaults, then
    those of `configuration`, then the preset's, then `settings`.

    Args:
        dataset: id or full name of a planned dataset.
        configuration: of the plans, to inherit from.
        name: of the new configuration.
        preset: key of `nnunet_synth.config.PRESETS`.
        settings: fields of `nnunet_synth.config.TrainerConfig`.
        plans: name of the plans.
        force: replace `name` if this command made it.

    Raises:
        UserError: unknown dataset, configuration, preset or synthesizer, a hyper-parameter that is unknown or out of
            its range, or a name that is taken. Nothing is written then.
    """
    from nnunet_synth.atomic import write_json
    from nnunet_synth.config import PRESETS, TrainerConfig
    from nnunet_synth.data.experiment import load_experiment

    if preset is not None and preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; known: {', '.join(PRESETS)}")
    experiment = load_experiment(dataset, configuration, plans=plans)
    _check_name(name, experiment.plans["configurations"], experiment.configuration_chain(), force)
    inherited = experiment.configuration_manager.configuration.get("nnunet_synth", {})
    config = TrainerConfig.from_plans_configuration({**inherited, **PRESETS.get(preset, {}), **(settings or {})})
    _check_synthesizer(config)

    block = {"inherits_from": configuration, "nnunet_synth": config.to_json()}
    configurations = {**experiment.plans["configurations"], name: block}
    path = experiment.preprocessed_folder / f"{plans}.json"
    write_json({**experiment.plans, "configurations": configurations}, path)

    default = TrainerConfig().to_json()
    changed = [f"{key}={value}" for key, value in block["nnunet_synth"].items() if default.get(key) != value]
    print(f"{path}: configuration {name} = {configuration} with {', '.join(changed) or 'all defaults'}")
    command = f"nnUNetv2_train {int(experiment.dataset_name[7:10])} {name} 0 -tr SACPSTrainer"
    print(f"train with: {command}{'' if plans == 'nnUNetPlans' else f' -p {plans}'}")


def _check_name(name: str, configurations: Mapping[str, Mapping[str, Any]], chain: list[str], force: bool) -> None:
    # nnU-Net takes results folders apart at "__".
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or "__" in name:
        raise UserError(f"--name {name!r} cannot be part of a results folder: use letters, digits, single _, - and .")
    if len(name) > 100:         # TRAINER__PLANS__NAME is one folder, of at most 255 bytes
        raise UserError(f"--name of {len(name)} letters: a results folder is called by it, choose at most 100")
    if name in chain:
        raise UserError(f"configuration {name} cannot inherit from itself ({' → '.join(chain)}): choose another --name")
    if name not in configurations:
        return
    if "nnunet_synth" not in configurations[name]:
        raise UserError(f"configuration {name} is nnU-Net's own: choose another --name")
    if not force:
        raise UserError(f"configuration {name} exists already: choose another --name, or replace it with --force "
                        "(its results, if any, then belong to the old hyper-parameters)")


def _check_synthesizer(config: Any) -> None:
    from nnunet_synth.synthesizers import find_synthesizer
    from nnunet_synth.synthesizers.options import make_config
    make_config(find_synthesizer(config.synthesizer), config.synthesizer_preset, config.synthesizer_options)
