"""What a study compares: the content of STUDY.yaml as objects, which `parse.py` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nnunet_synth.evaluation.segmentation import Criteria

ALL_LABELS = "100%"


@dataclass(frozen=True)
class Network:
    """A smaller configuration that is added to the plans.

    Attributes:
        name: of the configuration.
        features: of each stage; every stage but the first halves the size.
        patch_size, batch_size, spacing: None = those of the configuration that it is made from.
    """

    name: str
    features: tuple[int, ...]
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset and which parts of it are learnt from and tested on.

    Attributes:
        name: in this study.
        phantom: arguments of `write_phantom_dataset`; the dataset is drawn where it is missing.
        convert: how the dataset is made, for the message when it is missing.
        configuration: of nnU-Net's plans.
        layouts: method of `nnunet_synth layouts`; None = those that are there.
        folds: index or name in splits_final.json, or "all".
        labelled: label ratios of each fold; "100%" is the fold itself.
        by_group, split_seed: of `nnunet_synth split`.
        tests: "own" (imagesTs), "val" (the fold's validation cases), an id (imagesTs of another dataset) or "ID:train"
            (its imagesTr).
    """

    name: str
    id: int
    configuration: str = "2d"
    phantom: Mapping[str, Any] | None = None
    convert: str | None = None
    network: Network | None = None
    layouts: str | None = None
    folds: tuple[str, ...] = ("0",)
    labelled: tuple[str, ...] = (ALL_LABELS,)
    by_group: str | None = None
    split_seed: int = 0
    tests: tuple[str, ...] = ("own",)

    @property
    def trained_configuration(self) -> str:
        return self.network.name if self.network else self.configuration


@dataclass(frozen=True)
class SynthesizerPlan:
    """How a synthesizer is pretrained, once for each (dataset, fold, ratio) that a method uses it on."""

    name: str
    synthesizer: str
    preset: str = "default"
    steps: int | None = None
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    perceptual: str = "auto"
    missing: str | None = None


@dataclass(frozen=True)
class TrainingData:
    """Real cases, synthetic ones (`num_synthetic` slices drawn once by `sample`), or both."""

    real: bool = True
    num_synthetic: int = 0

    def __str__(self) -> str:
        synthetic = f"synthetic:{self.num_synthetic}" if self.num_synthetic else ""
        return "+".join(filter(None, ["real" if self.real else "", synthetic]))


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        settings: of the trainer, beside the study's budget.
        synthesizer: an entry of the study's `synthesizers`.
        teacher: another method, whose run of the same dataset, fold, ratio and seed teaches.
        labelled: this ratio instead of the dataset's.
        draw_for: what synthetic training data are drawn for: labels or pool.
        configuration: instead of the dataset's.
        missing: why this version cannot run it.
    """

    name: str
    trainer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    synthesizer: str | None = None
    teacher: str | None = None
    labelled: str | None = None
    data: TrainingData = TrainingData()
    draw_for: str = "labels"
    configuration: str | None = None
    missing: str | None = None

    @property
    def slug(self) -> str:
        return slug_of(self.name)


@dataclass(frozen=True)
class Measures:
    """What is measured and shown.

    Attributes:
        classes: names of those that are evaluated; () = all.
        best: nnU-Net's best checkpoint is tested too, beside the final one.
        mirroring: test-time augmentation of the predictions.
        window: intensities that the pictures show as black and white.
    """

    criteria: Criteria = Criteria()
    classes: tuple[str, ...] = ()
    best: bool = True
    mirroring: bool = True
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Published:
    """What a paper reports: measure → value, in per cent (HD95 in mm); None where it applies to all.

    Attributes:
        method: of this study, or (`other` in the file) one that only the paper has.
        class_name: None = the first class.
    """

    method: str
    source: str
    scores: Mapping[str, float]
    dataset: str | None = None
    labelled: str | None = None
    test: str | None = None
    class_name: str | None = None


@dataclass(frozen=True)
class Study:
    """All of a study file; `content` is the file itself."""

    name: str
    title: str
    description: str
    datasets: Mapping[str, DatasetPlan]
    seeds: tuple[int, ...]
    budget: Mapping[str, Any]
    synthesizers: Mapping[str, SynthesizerPlan]
    methods: Mapping[str, Method]
    baseline: str
    measures: Measures
    published: tuple[Published, ...]
    made_datasets: int | None
    content: Mapping[str, Any]

    def ratios(self, dataset: DatasetPlan, method: Method) -> tuple[str, ...]:
        """On which label ratios of a dataset a method is trained."""
        return (method.labelled,) if method.labelled else dataset.labelled

    @cached_property
    def all_ratios(self) -> dict[str, list[str]]:
        """Dataset → every ratio that any method is trained on, the dataset's own first."""
        return {name: list(dict.fromkeys([*dataset.labelled, *(ratio for method in self.methods.values()
                                                                for ratio in self.ratios(dataset, method))]))
                for name, dataset in self.datasets.items()}


def slug_of(name: str) -> str:
    """A part of a configuration's name: "SA-ST (+SA-CPS)" → "sa-st-sa-cps"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
