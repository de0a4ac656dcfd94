"""One dataset, configuration and fold as nnU-Net sees it: the facts that every other room asks for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_synth.atomic import write_json
from nnunet_synth.data.nnunet_folders import environment_folder, find_dataset
from nnunet_synth.data.planned_files import (
    check_configuration,
    check_inheritance,
    naming_unusable_plans,
    read_dataset_json,
    read_plans,
)
from nnunet_synth.data.raw_images import list_cases
from nnunet_synth.data.splits import (
    check_split,
    default_splits,
    find_fold,
    find_split,
    load_splits,
    split_sha256,
    splits_file,
)
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.semantic import SemanticClasses


@dataclass(frozen=True, repr=False)
class Experiment:
    """One dataset, configuration and fold.

    Attributes:
        fold: index in `splits_final.json`, or "all", or None where no fold is needed (preprocessing).
        raw_folder, preprocessed_folder, results_folder: …/DatasetXXX_Name.
    """

    dataset_name: str
    configuration: str
    fold: int | str | None
    plans_manager: PlansManager
    dataset_json: dict[str, Any]
    raw_folder: Path
    preprocessed_folder: Path
    results_folder: Path

    def __repr__(self) -> str:
        return f"Experiment({self.dataset_name}, {self.configuration}, fold {self.fold})"

    # -- nnU-Net's managers ------------------------------------------------------------------------------------------

    @property
    def plans(self) -> dict[str, Any]:
        return self.plans_manager.plans

    @property
    def plans_name(self) -> str:
        return self.plans_manager.plans_name

    @property
    def plans_file(self) -> Path:
        return self.preprocessed_folder / f"{self.plans_name}.json"

    @cached_property
    def configuration_manager(self) -> ConfigurationManager:
        return self.plans_manager.get_configuration(self.configuration)

    @cached_property
    def label_manager(self) -> LabelManager:
        with naming_unusable_plans(self.preprocessed_folder / "dataset.json"):
            return self.plans_manager.get_label_manager(self.dataset_json)

    # -- folders -----------------------------------------------------------------------------------------------------

    @property
    def data_folder(self) -> Path:
        """Preprocessed labelled cases: nnU-Net's, never touched."""
        return self.preprocessed_folder / self.configuration_manager.data_identifier

    @property
    def pool_folder(self) -> Path:
        """Preprocessed `imagesUl`."""
        return self.preprocessed_folder / f"{self.configuration_manager.data_identifier}_unlabelled"

    @property
    def pool_notes_folder(self) -> Path:
        """What each case of the pool was made of and what it shows, CASE.json; in the folder of the cases nnU-Net would
        stop at it."""
        return self.pool_folder.with_name(f"{self.pool_folder.name}_notes")

    @property
    def layouts_folder(self) -> Path:
        """One int16 map a case, layout + 256 · cluster, of labelled and pool cases."""
        return self.preprocessed_folder / f"{self.configuration_manager.data_identifier}_layouts"

    def synthesizer_folder(self, name: str, configuration: str | None = None) -> Path:
        """Where a synthesizer trained for this fold lives."""
        run = f"{name}__{self.plans_name}__{configuration or self.configuration}"
        return self.results_folder / run / f"fold_{self.fold}"

    def configuration_chain(self) -> list[str]:
        """The configuration and those that it inherits from, nearest first."""
        chain = [self.configuration]
        while parent := self.plans["configurations"][chain[-1]].get("inherits_from"):
            chain.append(parent)
        return chain

    # -- cases -------------------------------------------------------------------------------------------------------

    @cached_property
    def split(self) -> dict[str, Any]:
        """The split of this fold; FOLD `all` trains on everything and sees `imagesTs` only as a test set."""
        if self.fold == "all":
            return {"name": "all", "train": self.labelled_ids, "val": [], "unlabelled": []}
        if not splits_file(self.preprocessed_folder).exists():
            # What nnU-Net's own trainer would write at its first start.
            write_json(default_splits(self.labelled_ids), splits_file(self.preprocessed_folder))
        split = find_split(load_splits(self.preprocessed_folder), self.fold)
        check_split(split)
        missing = sorted({*split["train"], *split.get("unlabelled", [])} - set(self.labelled_ids))
        if missing:
            raise UserError(f"fold {self.fold} of splits_final.json names case(s) that were not preprocessed: "
                            f"{', '.join(missing[:5])}; run nnUNetv2_plan_and_preprocess, or correct the split")
        return split

    @property
    def split_sha256(self) -> str:
        return split_sha256(self.split)

    @property
    def train_ids(self) -> list[str]:
        return list(self.split["train"])

    @property
    def val_ids(self) -> list[str]:
        return list(self.split["val"])

    @property
    def unlabelled_ids(self) -> list[str]:
        """Labelled-dataset cases whose labels this fold hides."""
        return list(self.split.get("unlabelled", []))

    @cached_property
    def labelled_ids(self) -> list[str]:
        """All preprocessed cases of nnU-Net's own folder."""
        from nnunet_synth.data.preprocessed_cases import dataset_class
        if not self.data_folder.is_dir():
            raise UserError(f"{self.data_folder} does not exist: run nnUNetv2_plan_and_preprocess -d "
                            f"{self.dataset_name[7:10]} -c {self.configuration_chain()[-1]}")
        return sorted(dataset_class(self.data_folder).get_identifiers(str(self.data_folder)))

    @cached_property
    def pool_images(self) -> dict[str, list[Path]]:
        """Case id → its files in `imagesUl`, both in order; the folder is listed once, pools are large."""
        return self._cases("imagesUl")

    @property
    def pool_ids(self) -> list[str]:
        """Case ids of `imagesUl`."""
        return list(self.pool_images)

    @cached_property
    def test_ids(self) -> list[str]:
        return list(self._cases("imagesTs"))

    def _cases(self, folder: str) -> dict[str, list[Path]]:
        return list_cases(self.raw_folder / folder, self.file_ending)

    @property
    def file_ending(self) -> str:
        return self.dataset_json["file_ending"]

    # -- labels and classes ------------------------------------------------------------------------------------------

    @property
    def channel_names(self) -> list[str]:
        names = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        return [names[key] for key in sorted(names, key=int)]

    @property
    def layout_labels(self) -> dict[str, int]:
        """Name → value of the anatomy in layoutsTr and layoutsUl."""
        return dict(self.dataset_json.get("nnunet_synth", {}).get("layout_labels", {}))

    @property
    def foreground_labels(self) -> dict[str, int]:
        """Name → integer value of each foreground label; the parts of region-based labels are called label_<value>."""
        names = {value: name for name, value in self.dataset_json["labels"].items() if isinstance(value, int)}
        ignore = self.label_manager.ignore_label
        return {names.get(int(value), f"label_{value}"): int(value)
                for value in self.label_manager.all_labels if value not in (0, ignore)}

    @property
    def semantic(self) -> SemanticClasses:
        return SemanticClasses.from_labels(self.foreground_labels, self.layout_labels)

    # -- fingerprints ------------------------------------------------------------------------------------------------

    @property
    def plans_sha256(self) -> str:
        """Hash of what decides the intensity space: normalisation, transpose and spacing, and nothing else."""
        configuration = self.configuration_manager
        return _sha256({
            "normalization_schemes": configuration.normalization_schemes,
            "use_mask_for_norm": configuration.use_mask_for_norm,
            "intensities": self.plans_manager.foreground_intensity_properties_per_channel,
            "transpose_forward": self.plans_manager.transpose_forward,
            "spacing": list(configuration.spacing)[-2:],
        })

    @property
    def fingerprint_sha256(self) -> str:
        path = self.preprocessed_folder / "dataset_fingerprint.json"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def load_experiment(dataset: str | int, configuration: str, fold: int | str | None = None,
                    plans: str = "nnUNetPlans") -> Experiment:
    """Find a planned dataset.

    Args:
        dataset: id (501) or name (Dataset501_Phantom).
        configuration: of the plans: 2d, 3d_fullres, or one made by `nnunet_synth configure`.
        fold: index in splits_final.json, the name of an entry there ("f0_10%"), "all", or None.
        plans: name of the plans file.

    Raises:
        UserError: nnU-Net's folders are not set, or the dataset, the plans or the configuration do not exist.
    """
    folders = {name: environment_folder(name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    name = find_dataset(dataset)
    preprocessed = folders["nnUNet_preprocessed"] / name
    cure = f"run nnUNetv2_plan_and_preprocess -d {name[7:10]} -c {configuration}"
    plans_content = read_plans(preprocessed / f"{plans}.json", cure)
    if configuration not in plans_content["configurations"]:
        known = ", ".join(plans_content["configurations"])
        raise UserError(f"{plans}.json of {name} has no configuration {configuration!r}; it has: {known}")
    check_inheritance(plans_content["configurations"], configuration, preprocessed / f"{plans}.json")
    with naming_unusable_plans(preprocessed / f"{plans}.json"):
        plans_manager = PlansManager(plans_content)
        resolved = plans_manager.get_configuration(configuration).configuration
    check_configuration(resolved, configuration, preprocessed / f"{plans}.json", cure)
    dataset_json = read_dataset_json(preprocessed / "dataset.json", cure, cure)
    raw_json = folders["nnUNet_raw"] / name / "dataset.json"
    if raw_json.exists():
        # Layouts may be added after planning: what they are called stands in the raw dataset.json only.
        ours = read_dataset_json(raw_json, "restore it", "correct it").get("nnunet_synth")
        dataset_json = {**dataset_json, **({"nnunet_synth": ours} if ours else {})}
    return Experiment(dataset_name=name, configuration=configuration, fold=_parse_fold(fold, preprocessed),
                      plans_manager=plans_manager, dataset_json=dataset_json,
                      raw_folder=folders["nnUNet_raw"] / name, preprocessed_folder=preprocessed,
                      results_folder=folders["nnUNet_results"] / name)


def _parse_fold(fold: int | str | None, preprocessed_folder: Path) -> int | str | None:
    if fold is None or fold == "all" or str(fold).isdigit():
        return int(fold) if str(fold).isdigit() else fold
    return find_fold(load_splits(preprocessed_folder), fold)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
