"""Where a study and its datasets lie, and which folds they have."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_synth.data.experiment import Experiment, environment_folder, load_experiment
from nnunet_synth.data.splits import default_splits, load_splits, splits_file
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object
from nnunet_synth.study.plan import ALL_LABELS, DatasetPlan, Study

PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Place:
    """The folder of a study, nnU-Net's folders, and the device that it trains on."""

    folder: Path
    device: str
    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def find(cls, folder: Path, device: str) -> Place:
        """Raises UserError where nnU-Net's environment variables are not set."""
        raw, preprocessed, results = map(environment_folder, ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"))
        return cls(folder.absolute(), device, raw, preprocessed, results)

    @property
    def environment(self) -> dict[str, str]:
        """For every command of the study, unless the user has set it: what two CPU cores can bear (see demo/job.py)."""
        calm = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "OMP_WAIT_POLICY": "PASSIVE"}
        wanted = {"PYTHONUNBUFFERED": "1", **(calm if self.device == "cpu" else {})}
        return {name: value for name, value in wanted.items() if name not in os.environ}

    def dataset(self, dataset_id: int, name: str = "") -> DatasetFiles:
        """A dataset by its id; one that is not there (yet) gets `name`."""
        found = sorted({path.name for root in (self.raw, self.preprocessed)
                        for path in root.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir()})
        if len(found) > 1:
            raise UserError(f"dataset {dataset_id} must exist once in nnUNet_raw and nnUNet_preprocessed: found "
                            f"{', '.join(found)}")
        return DatasetFiles(self, dataset_id, found[0] if found else f"Dataset{dataset_id:03d}_{name or 'unknown'}")


@dataclass(frozen=True)
class DatasetFiles:
    """One dataset in nnU-Net's three folders."""

    place: Place
    id: int
    name: str

    @property
    def raw(self) -> Path:
        return self.place.raw / self.name

    @property
    def preprocessed(self) -> Path:
        return self.place.preprocessed / self.name

    @property
    def results(self) -> Path:
        return self.place.results / self.name

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / f"{PLANS}.json"

    @property
    def is_there(self) -> bool:
        return (self.raw / "dataset.json").is_file()

    @property
    def file_ending(self) -> str:
        return read_object(self.raw / "dataset.json", "restore it", "correct it", "file_ending")["file_ending"]

    def experiment(self, configuration: str, fold: int | str | None = None) -> Experiment:
        return load_experiment(self.name, configuration, fold, PLANS)

    def plans(self) -> dict[str, Any]:
        return read_object(self.plans_file, "plan the dataset again", "plan the dataset again", "configurations")

    def has_configuration(self, name: str) -> bool:
        return self.plans_file.is_file() and name in self.plans()["configurations"]

    def fold_folder(self, trainer: str, configuration: str, fold: int | str) -> Path:
        return self.results / f"{trainer}__{PLANS}__{configuration}" / f"fold_{fold}"

    def label_ids(self, folder: str = "labelsTr") -> list[str]:
        ending = self.file_ending
        return sorted(path.name.removesuffix(ending) for path in (self.raw / folder).glob(f"*{ending}")
                      if not path.name.startswith("."))


class Folds:
    """Which folds of `splits_final.json` a study trains on; those that are still to be made get the indices that
    `nnunet_synth split` will give them, so that every command of a study is known before it starts."""

    def __init__(self, study: Study, plan: DatasetPlan, files: DatasetFiles) -> None:
        self.plan, self.files = plan, files
        self.ratios = study.all_ratios[plan.name]

    @cached_property
    def existing(self) -> list[dict[str, Any]]:
        """What is on the disk, else nnU-Net's own five folds, of which the cases may not be known yet."""
        if splits_file(self.files.preprocessed).is_file():
            return load_splits(self.files.preprocessed)
        cases = self.files.label_ids() if self.files.is_there else []
        return default_splits(cases) if len(cases) >= 5 else [{"train": [], "val": []} for _ in range(5)]

    def ratio_name(self, fold: str, ratio: str) -> str:
        """What `nnunet_synth split` calls the fold of a ratio."""
        parent = self._index(fold)
        name = self.existing[parent].get("name", f"f{parent}") if parent is not None else fold
        return f"{name}_{ratio}"

    @cached_property
    def indices(self) -> dict[tuple[str, str], int | str]:
        """(fold, ratio) → FOLD of the training command; a guess while the dataset is not there.

        Raises:
            UserError: the study names a fold that its dataset does not have.
        """
        names: list[str | None] = [split.get("name") for split in self.existing]
        found: dict[tuple[str, str], int | str] = {}
        for fold in self.plan.folds:
            parent = self._index(fold)
            related = [name for name in names if name and name.startswith(f"{fold}_")]
            is_there = self.files.is_there or splits_file(self.files.preprocessed).is_file()
            if is_there and fold != "all" and parent is None and not (related and not fold.isdigit()):
                known = ", ".join(f"{index} = {name}" for index, name in enumerate(names) if name) or "none is named"
                raise UserError(f"dataset {self.plan.name}: unknown fold {fold}; splits_final.json of "
                                f"{self.files.name} has 0 to {len(names) - 1} ({known})")
            for ratio in sorted(self.ratios, key=lambda ratio: ratio != ALL_LABELS):       # the parent first
                if fold == "all":
                    found[fold, ratio] = "all"
                elif ratio == ALL_LABELS and parent is not None:
                    found[fold, ratio] = parent
                else:
                    name = fold if ratio == ALL_LABELS else self.ratio_name(fold, ratio)
                    if name not in names:
                        names.append(name)
                    found[fold, ratio] = names.index(name)
        return found

    def _index(self, fold: str) -> int | None:
        if fold.isdigit():
            return int(fold) if int(fold) < len(self.existing) else None
        return next((index for index, split in enumerate(self.existing) if split.get("name") == fold), None)

    @property
    def missing(self) -> list[tuple[str, str]]:
        """(fold, ratio) that splits_final.json does not have yet."""
        on_disk = len(self.existing) if splits_file(self.files.preprocessed).is_file() else 0
        return [key for key, index in self.indices.items() if index != "all" and int(index) >= on_disk]

    def parts(self, fold: str, ratio: str) -> Mapping[str, Sequence[str]]:
        """The split itself, once it is there."""
        return load_splits(self.files.preprocessed)[int(self.indices[fold, ratio])]
