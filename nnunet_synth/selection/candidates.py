"""The models that are compared: every checkpoint of every synthesizer of a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import ENTRY_POINT_GROUP, find_synthesizer
from nnunet_synth.synthesizers.base import SynthMeta
from nnunet_synth.synthesizers.checkpoint import META_FILE, check_synthesizer_fits, list_checkpoints, load_meta


@dataclass(frozen=True)
class Candidate:
    """One model.

    Attributes:
        checkpoint: its name among those of its synthesizer: final, step_001250, ….
        folder: where it lies.
        home: its synthesizer's folder.
    """

    synthesizer: str
    checkpoint: str
    folder: Path
    home: Path
    meta: SynthMeta

    @property
    def name(self) -> str:
        return f"{self.synthesizer} {self.checkpoint}"


def find_candidates(experiment: Experiment, synthesizers: Sequence[str] = ()) -> tuple[list[Candidate], list[str]]:
    """All models of the named synthesizers (none named: of all that were trained for this fold), and warnings.

    They are looked for under this configuration and along its `inherits_from` chain, as the trainers do.

    Raises:
        UserError: an unknown name, a synthesizer that was not trained, one that does not fit, or none at all.
    """
    names = list(dict.fromkeys(synthesizers)) or sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})
    candidates, warnings = [], []
    for name in names:
        if synthesizers:
            find_synthesizer(name)
        home = _home(experiment, name)
        if home is None and synthesizers:
            raise UserError(f"synthesizer {name} has no model for fold {experiment.fold}: first run nnunet_synth "
                            f"pretrain {_where(experiment)} --synthesizer {name}")
        for checkpoint, folder in list_checkpoints(home).items() if home else ():
            candidates.append(Candidate(name, checkpoint, folder, home, load_meta(folder)))
            warnings += _check_fits(experiment, candidates[-1])
    if not candidates:
        raise UserError(f"no synthesizer was trained for fold {experiment.fold} of {experiment.dataset_name} "
                        f"{experiment.configuration}: first run nnunet_synth pretrain {_where(experiment)}")
    return candidates, list(dict.fromkeys(warnings))


def _home(experiment: Experiment, name: str) -> Path | None:
    folders = [experiment.synthesizer_folder(name, configuration) for configuration in experiment.configuration_chain()]
    return next((folder for folder in folders if (folder / META_FILE).is_file()), None)


def _check_fits(experiment: Experiment, candidate: Candidate) -> list[str]:
    manager = experiment.configuration_manager
    return check_synthesizer_fits(
        candidate.meta, semantic=experiment.semantic, channel_names=experiment.channel_names,
        plans_sha256=experiment.plans_sha256, val_ids=experiment.val_ids, test_ids=experiment.test_ids,
        patch_size=manager.patch_size, spacing=manager.spacing,
        pretrain_command=f"nnunet_synth pretrain {_where(experiment)} --synthesizer {candidate.synthesizer}")


def _where(experiment: Experiment) -> str:
    return f"{experiment.dataset_name[7:10]} {experiment.configuration_chain()[-1]} {experiment.fold}"
