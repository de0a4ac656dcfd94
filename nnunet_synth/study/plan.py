"""What a study compares: the content of STUDY.yaml as objects, which `parse.py` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from nnunet_synth.evaluation.segmentation import Criteria

ALL_LABELS = "100%"
PAPER_CONDITIONS = "paper-conditions"


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
class ClusterPlan:
    """How the clusters are made that synthesizers of unsupervised masks find beside the images.

    Attributes:
        method: of `nnunet_synth layouts`: cs2 or superpixel.
        settings: of method superpixel, see `SuperpixelSettings`; others keep their defaults.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, Any]:
        """What dataset.json says about clusters that are made so. Raises UserError for settings that cannot be."""
        from nnunet_synth.data.cluster_network import ClusterSettings
        from nnunet_synth.data.superpixel_layouts import SuperpixelSettings
        settings = SuperpixelSettings(**self.settings) if self.method == "superpixel" else ClusterSettings()
        return {"method": self.method, **asdict(settings)}


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset and which parts of it are learnt from and tested on.

    Attributes:
        name: in this study.
        phantom: arguments of `write_phantom_dataset`; the dataset is drawn where it is missing.
        convert: how the dataset is made, for the message when it is missing.
        configuration: of nnU-Net's plans.
        layouts: method of `nnunet_synth layouts`; None = those that are there.
        clusters: None = those that are there.
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
    clusters: ClusterPlan | None = None
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

    @property
    def mask_source(self) -> SynthesizerPlan:
        """What draws the masks from noise that this synthesizer draws for, of the same preset.

        Raises:
            UserError: the mask source has no such preset.
        """
        from nnunet_synth.mask_sources import find_mask_source
        from nnunet_synth.mask_sources.unsupervised import MASK_SETTINGS, DrawsFromMasks
        from nnunet_synth.synthesizers import find_synthesizer
        from nnunet_synth.synthesizers.options import make_config
        drawn_with = find_synthesizer(self.synthesizer)
        if not issubclass(drawn_with, DrawsFromMasks):
            return SynthesizerPlan("v2m", "v2m", self.preset)
        config, of_source = make_config(drawn_with, self.preset, self.options), make_config(find_mask_source("v2um"),
                                                                                            self.preset)
        shared = {key: getattr(config, key) for key in MASK_SETTINGS if hasattr(config, key)}
        return SynthesizerPlan("v2um", "v2um", self.preset, options={key: value for key, value in shared.items()
                                                                     if value != getattr(of_source, key)})


@dataclass(frozen=True)
class TrainingData:
    """Real cases, synthetic ones drawn once by `sample`, or both.

    Attributes:
        num_synthetic: slices or volumes; None = a volume for each label volume and network of the synthesizer.
        are_volumes: whether the synthetic ones are whole volumes.
    """

    real: bool = True
    num_synthetic: int | None = 0
    are_volumes: bool = False

    @property
    def has_synthetic(self) -> bool:
        return self.num_synthetic != 0

    def __str__(self) -> str:
        number = f":{self.num_synthetic}" if self.num_synthetic else ""
        synthetic = f"{'volumes' if self.are_volumes else 'synthetic'}{number}" if self.has_synthetic else ""
        return "+".join(filter(None, ["real" if self.real else "", synthetic]))


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        settings: of the trainer, beside the study's budget.
        synthesizer: an entry of the study's `synthesizers`.
        teacher: another method, whose run of the same dataset, fold, ratio and seed teaches.
        labelled: this ratio instead of the dataset's.
        draw_for: what synthetic training data are drawn for: labels, pool or noise; volumes for labels or, as
            CoSinGAN's authors did, for the masks of all labelled cases, those of the validation fold too
            (paper-conditions).
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

    @property
    def data_in_words(self) -> str:
        """What it is trained on, and for which conditions the synthetic part of it was drawn."""
        if not self.data.has_synthetic:
            return str(self.data)
        if self.draw_for == PAPER_CONDITIONS:
            return f"{self.data}, drawn for the masks of all labelled cases: those of the validation cases were seen"
        return f"{self.data}, drawn {'from' if self.draw_for == 'noise' else 'for'} {self.draw_for}"


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
