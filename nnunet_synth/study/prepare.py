"""What a dataset needs before anything is trained on it: plans, a small network, layouts, folds, configurations."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_synth.atomic import write_json
from nnunet_synth.config import TrainerConfig
from nnunet_synth.data.splits import check_split, default_splits, load_splits, splits_file
from nnunet_synth.environment import planning_environment
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object
from nnunet_synth.study.place import PLANS, DatasetFiles, Folds
from nnunet_synth.study.plan import ALL_LABELS, ClusterPlan, DatasetPlan, Network
from nnunet_synth.study.run import Command, Run


@dataclass(frozen=True)
class PrepareRun(Run):
    """Changes files that all runs of a dataset read: one at a time, over all studies."""

    files: DatasetFiles = None          # type: ignore[assignment]
    plan: DatasetPlan = None            # type: ignore[assignment]

    def lock_file(self, folder: Path) -> Path:
        return self.files.place.preprocessed / f".study_{self.files.id:03d}.lock"


@dataclass(frozen=True)
class FindData(PrepareRun):
    """The raw dataset: converted before, or a phantom, which is drawn."""

    def is_done(self) -> bool:
        return self.files.is_there

    def begin(self) -> None:
        if self.plan.phantom is None:
            hint = self.plan.convert or f"nnunet_synth convert TYPE SOURCE -d {self.plan.id}"
            raise UserError(f"dataset {self.plan.id} ({self.plan.name}) is not in nnUNet_raw: make it with {hint}, or "
                            "correct its id")
        from nnunet_synth.data.phantom import write_phantom_dataset
        write_phantom_dataset(self.files.place.raw, self.plan.id, **self.plan.phantom)

    def shown(self) -> list[str]:
        return [f"# draw the phantom: {self.files.raw}" if self.plan.phantom is not None
                else f"# make the dataset: {self.plan.convert}"]


@dataclass(frozen=True)
class PlanNetworks(PrepareRun):
    """nnU-Net's fingerprint and plans. Never a second time: it would remove the configurations that were added."""

    def is_done(self) -> bool:
        return self.files.has_configuration(self.plan.configuration)

    def begin(self) -> None:
        if self.files.plans_file.is_file():
            known = ", ".join(self.files.plans()["configurations"])
            raise UserError(f"{PLANS}.json of {self.files.name} has no configuration {self.plan.configuration!r}; it "
                            f"has: {known}")

    def commands(self) -> list[Command]:
        return [("nnUNetv2_plan_and_preprocess", "-d", str(self.files.id), "--no_pp", "--verify_dataset_integrity",
                 *(("-npfp", "1") if self.files.place.device == "cpu" else ()))]

    def environment(self) -> dict[str, str]:
        return planning_environment({**self.files.place.environment, **os.environ})


@dataclass(frozen=True)
class AddNetwork(PrepareRun):
    """The study's smaller configuration in the plans."""

    network: Network = None             # type: ignore[assignment]

    def is_done(self) -> bool:
        if not self.files.has_configuration(self.network.name):
            return False
        if self.files.plans()["configurations"][self.network.name] != self._block():
            raise UserError(f"{PLANS}.json of {self.files.name} has another configuration {self.network.name}: give "
                            "the study's network another name")
        return True

    def begin(self) -> None:
        plans = self.files.plans()
        plans["configurations"][self.network.name] = self._block()
        write_json(plans, self.files.plans_file)

    def _block(self) -> dict[str, Any]:
        return network_block(self.files.plans(), self.plan.configuration, self.network)

    def shown(self) -> list[str]:
        return [f"# add configuration {self.network.name} to {self.files.plans_file}: features "
                f"{list(self.network.features)}"]


def network_block(plans: Mapping[str, Any], base: str, network: Network) -> dict[str, Any]:
    """The block of plans["configurations"] that makes `network` of the planned configuration `base`."""
    planned = plans["configurations"][base]
    stages, dimensions = len(network.features), len(planned["patch_size"])
    if dimensions != 2:
        raise UserError(f"network {network.name} is made of configuration {base}: small networks are made of 2d ones "
                        "only")
    block: dict[str, Any] = {"inherits_from": base, "architecture": {**planned["architecture"], "arch_kwargs": {
        **planned["architecture"]["arch_kwargs"], "n_stages": stages, "features_per_stage": list(network.features),
        "kernel_sizes": [[3] * dimensions] * stages, "strides": [[1] * dimensions] + [[2] * dimensions] * (stages - 1),
        "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [1] * (stages - 1)}}}
    for key in ("patch_size", "spacing"):
        if (value := getattr(network, key)) is not None:
            if len(value) != dimensions:
                raise UserError(f"{key} {list(value)} of network {network.name} must have {dimensions} numbers, as "
                                f"configuration {base}")
            block[key] = list(value)
    if network.batch_size is not None:
        block["batch_size"] = network.batch_size
    if network.spacing is not None:         # other voxels than those of the base: preprocessed into a folder of its own
        block["data_identifier"] = f"{PLANS}_{network.name}"
    return block


@dataclass(frozen=True)
class PreprocessLabelled(PrepareRun):
    """nnU-Net's preprocessing of the labelled cases, for the configuration that is trained."""

    configuration: str = "2d"

    def is_done(self) -> bool:
        experiment = self.files.experiment(self.configuration)
        cases = self.files.label_ids()
        truths = self.files.preprocessed / "gt_segmentations"
        # The .pkl of a case is written last, the true label maps after all cases.
        return all((experiment.data_folder / f"{case}.pkl").is_file() for case in cases) and \
            all((truths / f"{case}{self.files.file_ending}").is_file() for case in cases)

    def commands(self) -> list[Command]:
        return [("nnUNetv2_preprocess", "-d", str(self.files.id), "-c", self.configuration,
                 *(("-np", "1") if self.files.place.device == "cpu" else ("-np", "8")))]


@dataclass(frozen=True)
class FindLayouts(PrepareRun):
    """Layouts of every case that has none."""

    def is_done(self) -> bool:
        return has_maps(self.files, "layouts")

    def commands(self) -> list[Command]:
        return [("nnunet_synth", "layouts", str(self.files.id), "--method", self.plan.layouts or "threshold")]


@dataclass(frozen=True)
class FindClusters(PrepareRun):
    """Clusters of every case that has none. A dataset has one kind: those that are there must be the study's."""

    def is_done(self) -> bool:
        ours = read_object(self.files.raw / "dataset.json", "restore it", "correct it").get("nnunet_synth", {})
        wanted = self._plan.description
        if ours.get("clusters", wanted) != wanted:
            differing = ", ".join(f"{key} {ours['clusters'].get(key)} → {value}" for key, value in wanted.items()
                                  if ours["clusters"].get(key) != value)
            raise UserError(f"{self.files.name} has clusters that were made otherwise than this study asks for "
                            f"({differing}): give the study a dataset of its own, or replace them all with "
                            f"{' '.join([*self._command, '--overwrite'])}")
        return has_maps(self.files, "clusters")

    @property
    def _plan(self) -> ClusterPlan:
        assert self.plan.clusters is not None
        return self.plan.clusters

    @property
    def _command(self) -> Command:
        begin = ("nnunet_synth", "layouts", str(self.files.id), "--method", self._plan.method)
        if self._plan.method == "cs2":
            return (*begin, "--device", self.files.place.device)
        flags = {"segmentation": "--segmentation", "num_segments": "--segments", "step": "--step"}
        given = [part for name, value in self._plan.settings.items() for part in (flags[name], str(value))]
        return (*begin, *given, "--into", "cluster", *(() if self.files.place.device == "cpu" else ("--jobs", "8")))

    def commands(self) -> list[Command]:
        return [self._command]


def has_maps(files: DatasetFiles, kind: str) -> bool:
    """Whether every labelled and unlabelled case has its `layouts` or `clusters`."""
    from nnunet_synth.data.raw_images import list_cases
    ending = files.file_ending
    return all((files.raw / f"{kind}{part}" / f"{case}{ending}").is_file()
               for part in ("Tr", "Ul") for case in list_cases(files.raw / f"images{part}", ending))


@dataclass(frozen=True)
class MakeFolds(PrepareRun):
    """The folds of the label ratios, and the full fold where a published split names its ratios only."""

    folds: Folds = None                 # type: ignore[assignment]

    def is_done(self) -> bool:
        if not splits_file(self.files.preprocessed).is_file():
            return set(self.plan.folds) == {"all"}
        return not self._missing()

    def _missing(self) -> list[tuple[str, str]]:
        splits = load_splits(self.files.preprocessed)
        missing = []
        for (fold, ratio), index in self.folds.indices.items():
            if index == "all":
                continue
            name = fold if ratio == ALL_LABELS else self.folds.ratio_name(fold, ratio)
            if int(index) >= len(splits):
                missing.append((fold, ratio))
            elif not name.isdigit() and splits[int(index)].get("name") != name:
                raise UserError(f"fold {index} of {splits_file(self.files.preprocessed)} is not {name} any more: the "
                                "file was changed while the study ran; start the study again")
            else:
                check_split(splits[int(index)])
        return missing

    def begin(self) -> None:
        from nnunet_synth.commands.split import split
        if not splits_file(self.files.preprocessed).is_file():
            write_json(default_splits(self.files.label_ids()), splits_file(self.files.preprocessed))
        for fold in self.plan.folds:        # in the order in which the indices were given out
            missing = [ratio for name, ratio in self._missing() if name == fold]
            if ALL_LABELS in missing:
                self._join(fold)
            if ratios := [ratio for ratio in missing if ratio != ALL_LABELS]:
                with contextlib.redirect_stdout(io.StringIO()):
                    split(self.files.id, fold, ratios, self.plan.by_group, self.plan.split_seed)

    def _join(self, fold: str) -> None:
        """The fold whose labels are all there, of one of its ratios."""
        splits = load_splits(self.files.preprocessed)
        one = next(split for split in splits if split.get("name", "").startswith(f"{fold}_"))
        splits.append({"name": fold, "train": sorted({*one["train"], *one.get("unlabelled", [])}), "val": one["val"]})
        write_json(splits, splits_file(self.files.preprocessed))

    def shown(self) -> list[str]:
        commands = []
        for fold in self.plan.folds:
            ratios = [ratio for missing, ratio in self.folds.missing if missing == fold and ratio != ALL_LABELS]
            if ratios:
                by_group = f" --by-group '{self.plan.by_group}'" if self.plan.by_group else ""
                commands.append(f"nnunet_synth split {self.files.id} --of-fold {fold} --labelled {' '.join(ratios)} "
                                f"--seed {self.plan.split_seed}{by_group}")
        return commands or ["# the folds are there"]


@dataclass(frozen=True)
class Configuration:
    """A configuration of the plans that `nnunet_synth configure` makes; `results` are the folders it trains into."""

    name: str
    base: str
    settings: Mapping[str, Any]
    results: tuple[Path, ...]


@dataclass(frozen=True)
class Configure(PrepareRun):
    """One configuration for each method and seed, and for each synthesizer whose name is not that of its kind."""

    configurations: tuple[Configuration, ...] = ()

    def is_done(self) -> bool:
        return not self._todo()

    def _todo(self) -> list[Configuration]:
        existing = self.files.plans()["configurations"]
        todo = []
        for wanted in self.configurations:
            block = existing.get(wanted.name)
            inherited = self._inherited(existing, wanted.base)
            config = TrainerConfig.from_plans_configuration({**inherited, **wanted.settings}).to_json()
            old = None
            if block is not None:
                old = TrainerConfig.from_plans_configuration(block.get("nnunet_synth", {})).to_json()
            if old == config and block.get("inherits_from") == wanted.base:
                continue            # also where a setting is newer than the block, and was left at its default
            trained = [folder for folder in wanted.results if any(folder.glob("fold_*/checkpoint_*.pth"))]
            if old is not None and trained:
                changed = sorted(key for key in {*old, *config} if old.get(key) != config.get(key))
                listed = ", ".join(f"{key} {old.get(key)} → {config.get(key)}" for key in changed[:4])
                raise UserError(f"configuration {wanted.name} of {self.files.name} has results of other settings "
                                f"({listed or 'another base'}): rename the method, or remove {trained[0]}")
            todo.append(wanted)
        return todo

    def _inherited(self, existing: Mapping[str, Any], base: str) -> Mapping[str, Any]:
        """The block of the base; bases that are still to be made bring the settings they are made with."""
        planned = {wanted.name: wanted for wanted in self.configurations}
        if base in planned:
            return {**self._inherited(existing, planned[base].base), **planned[base].settings}
        block = existing.get(base, {})
        return block["nnunet_synth"] if "nnunet_synth" in block else \
            self._inherited(existing, block["inherits_from"]) if "inherits_from" in block else {}

    def begin(self) -> None:
        from nnunet_synth.commands.configure import configure
        for wanted in self._todo():
            with contextlib.redirect_stdout(io.StringIO()):
                configure(self.files.id, wanted.base, wanted.name, settings=wanted.settings, force=True)

    def shown(self) -> list[str]:
        return [" ".join(["nnunet_synth configure", str(self.files.id), wanted.base, "--name", wanted.name, "--set",
                          *(f"'{key}={_spelled(value)}'" if isinstance(value, dict | str) and not str(value).isalnum()
                            else f"{key}={_spelled(value)}" for key, value in wanted.settings.items())])
                for wanted in self.configurations]


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class PreprocessUnlabelled(PrepareRun):
    """The pool and the layouts."""

    configuration: str = "2d"

    def is_done(self) -> bool:
        from nnunet_synth.data.unlabelled import PoolPlan
        return PoolPlan(self.files.experiment(self.configuration)).is_complete

    def commands(self) -> list[Command]:
        return [("nnunet_synth", "preprocess", str(self.files.id), self.configuration,
                 *(("--jobs", "1") if self.files.place.device == "cpu" else ()))]
