"""STUDY.yaml → what is to be compared; docs/reproduce.md explains the file.

Every mistake in the file is one line that names the known values. Nothing is looked up on the disk here, so that a
study can be read, listed and shown where its data are not.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nnunet_synth.config import TrainerConfig
from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.segmentation import METRICS, Criteria
from nnunet_synth.synthesizers import ENTRY_POINT_GROUP

STUDIES = Path(__file__).parents[1] / "studies"        # those that come with the package
ALL_LABELS = "100%"

# Announced, but perhaps not in this version: their methods are skipped with this reason, the rest of the study runs.
ANNOUNCED_TRAINERS = ("SupervisedTrainer", "MeanTeacherTrainer", "UAMTTrainer", "CCTTrainer", "UDCTrainer",
                      "SelfEnsemblingTrainer", "SemiInfNetTrainer", "UniMatchTrainer")
ANNOUNCED_SYNTHESIZERS = ("cosingan", "cs2", "lcgan", "um2i")


# ----------------------------------------------------------------------------------------------------------------------
# The parts


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


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def find_study(name: str | Path) -> Path:
    """A study file, or one of those that come with the package, by its name. Raises UserError."""
    path = Path(name)
    if path.is_file():
        return path
    known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
    if str(name) in known:
        return STUDIES / f"{name}.yaml"
    raise UserError(f"there is no study file {name}; give a path, or one of {', '.join(known)}")


def read_study(path: str | Path) -> Study:
    """The study in a file.

    Raises:
        UserError: any mistake in it, with the file, the place in it, and what is known there.
    """
    path = Path(path)
    try:
        return parse_study(_read_yaml(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_study(content: Any) -> Study:
    """The study in what YAML makes of a file; raises UserError as `read_study`, without the file's name."""
    block = _Block(content, "the study", ("name", "title", "description", "datasets", "seeds", "budget", "synthesizers",
                                          "methods", "baseline", "measures", "published", "made_datasets"))
    name = block.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"name {name!r} becomes a folder: use letters, digits, _, - and .")
    synthesizers = {key: _synthesizer(key, entry) for key, entry in block.entries("synthesizers", ()).items()}
    methods = {key: _method(key, entry, synthesizers) for key, entry in block.entries("methods").items()}
    datasets = {key: _dataset(key, entry) for key, entry in block.entries("datasets").items()}
    made_datasets = block.whole("made_datasets", None, low=1, high=999)
    _check_methods(methods, made_datasets)
    _check_folds(datasets, methods)
    budget = block.mapping("budget")
    _check_settings(budget, "budget")
    baseline = block.choice("baseline", tuple(methods))
    measures = _measures(block.content.get("measures", {}))
    return Study(name=name, title=block.text("title", name), description=block.text("description", "").strip(),
                 datasets=datasets, seeds=tuple(_whole(seed, "seeds", 0, 2**32 - 1) for seed in block.list("seeds")),
                 budget=budget, synthesizers=synthesizers, methods=methods, baseline=baseline, measures=measures,
                 published=tuple(_published(row, number, methods, datasets)
                                 for number, row in enumerate(block.list("published", ()))),
                 made_datasets=made_datasets, content=content)


def _dataset(name: str, content: Any) -> DatasetPlan:
    where = f"dataset {name}"
    block = _Block(content, where, ("id", "configuration", "phantom", "convert", "network", "layouts", "folds",
                                    "labelled", "by_group", "split_seed", "tests"))
    phantom = block.content.get("phantom")
    if phantom is not None:
        phantom = _Block(phantom, f"phantom of {where}", ("num_labelled", "num_unlabelled", "num_test", "size",
                                                          "num_slices", "seed")).content
        phantom = {key: _whole(value, f"{key} of the phantom", 0) for key, value in phantom.items()}
    network = block.content.get("network")
    return DatasetPlan(
        name, block.whole("id", low=1, high=999), configuration=block.text("configuration", "2d"), phantom=phantom,
        convert=block.text("convert", None), network=None if network is None else _network(network, where),
        layouts=block.choice("layouts", ("threshold", "lungmask", "labels"), None),
        folds=tuple(_fold(fold, where) for fold in block.list("folds", (0,))),
        labelled=tuple(_amount(amount, where) for amount in block.list("labelled", (ALL_LABELS,))),
        by_group=block.text("by_group", None), split_seed=block.whole("split_seed", 0, low=0),
        tests=tuple(_test(test, where) for test in block.list("tests", ("own",))))


def _network(content: Any, where: str) -> Network:
    block = _Block(content, f"network of {where}", ("name", "features", "patch_size", "batch_size", "spacing"))
    name = block.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or "__" in name:
        raise UserError(f"network name {name!r} becomes a configuration: use letters, digits, single _, - and .")
    features = tuple(_whole(number, "features", 1) for number in block.list("features"))
    patch = tuple(_whole(side, "patch_size", 1) for side in block.list("patch_size", ())) or None
    spacing = tuple(_positive(step, "spacing") for step in block.list("spacing", ())) or None
    if patch and any(side % 2 ** (len(features) - 1) for side in patch):
        raise UserError(f"patch_size {list(patch)} of {where} must be a multiple of {2 ** (len(features) - 1)}: each "
                        f"of {len(features)} stages but the first halves it")
    return Network(name, features, patch, block.whole("batch_size", None, low=1), spacing)


def _synthesizer(name: str, content: Any) -> SynthesizerPlan:
    where = f"synthesizer {name}"
    block = _Block(content, where, ("synthesizer", "preset", "steps", "batch_size", "options", "perceptual"))
    registered = sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})
    kind = block.choice("synthesizer", tuple(sorted({*registered, *ANNOUNCED_SYNTHESIZERS})), name,
                        shown=tuple(registered))
    missing = None if kind in registered else f"needs synthesizer {kind}, which this version does not have"
    plan = SynthesizerPlan(name, kind, block.text("preset", "default"), block.whole("steps", None, low=1),
                           block.whole("batch_size", None, low=1), block.mapping("options"),
                           block.text("perceptual", "auto"), missing)
    if missing is None:
        from nnunet_synth.synthesizers import find_synthesizer
        from nnunet_synth.synthesizers.options import make_config
        try:
            make_config(find_synthesizer(kind), plan.preset, plan.options)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return plan


def _method(name: str, content: Any, synthesizers: Mapping[str, SynthesizerPlan]) -> Method:
    where = f"method {name}"
    block = _Block(content, where, ("trainer", "settings", "synthesizer", "teacher", "labelled", "data", "draw_for",
                                    "configuration"))
    if not slug_of(name):
        raise UserError(f"{where}: its name needs a letter or a digit")
    trainer, settings = block.text("trainer"), block.mapping("settings")
    is_there = has_trainer(trainer)
    if not is_there and trainer not in ANNOUNCED_TRAINERS:
        raise UserError(f"{where}: unknown trainer {trainer!r}; {_known(trainer, known_trainers())}")
    if settings and trainer.startswith("nnUNetTrainer"):
        raise UserError(f"{where}: {trainer} is nnU-Net's own and takes no settings; use SupervisedTrainer, or leave "
                        "them out")
    _check_settings(settings, where)
    synthesizer = block.choice("synthesizer", tuple(synthesizers), None)
    labelled = block.content.get("labelled")
    data = _data(block.content.get("data", "real"), where)
    if data.num_synthetic and synthesizer is None:
        raise UserError(f"{where}: data {data} need a synthesizer; known: {', '.join(synthesizers) or 'none'}")
    reasons = [None if is_there else f"needs trainer {trainer}, which this version does not have",
               synthesizers[synthesizer].missing if synthesizer else None]
    configuration = block.text("configuration", None)
    if data.num_synthetic and configuration and not configuration.startswith("2d"):
        reasons.append(f"{configuration} needs synthetic volumes, this version draws slices")
    return Method(name, trainer, settings, synthesizer, block.text("teacher", None),
                  None if labelled is None else _amount(labelled, where), data,
                  block.choice("draw_for", ("labels", "pool"), "labels"), configuration,
                  "; ".join(filter(None, reasons)) or None)


def _check_methods(methods: Mapping[str, Method], made_datasets: int | None) -> None:
    slugs: dict[str, str] = {}
    for method in methods.values():
        twin = slugs.setdefault(method.slug, method.name)
        if twin != method.name:
            raise UserError(f"methods {twin} and {method.name} would share the configuration name {method.slug}: "
                            "rename one")
        if method.data.num_synthetic and made_datasets is None:
            raise UserError(f"method {method.name} makes datasets of its own: set made_datasets to the first id that "
                            "they may take, e.g. 700")
        if method.teacher is None:
            continue
        if method.teacher not in methods:
            raise UserError(f"method {method.name}: unknown teacher {method.teacher!r}; "
                            f"{_known(method.teacher, methods)}")
        teacher = methods[method.teacher]
        if method.data != teacher.data or method.labelled != teacher.labelled:
            raise UserError(f"method {method.name}: teacher {teacher.name} is trained on other data (labelled "
                            f"{teacher.labelled or 'as the dataset'}, {teacher.data}): a teacher must have seen the "
                            "labels that its student sees")
    for method in methods.values():
        chain = [method.name]
        while (teacher := methods[chain[-1]].teacher) is not None:
            if teacher in chain:
                raise UserError(f"the methods {' → '.join([*chain, teacher])} teach each other: one must learn from "
                                "none")
            chain.append(teacher)


def _check_folds(datasets: Mapping[str, DatasetPlan], methods: Mapping[str, Method]) -> None:
    ids: dict[int, str] = {}
    for dataset in datasets.values():
        twin = ids.setdefault(dataset.id, dataset.name)
        if twin != dataset.name:
            raise UserError(f"datasets {twin} and {dataset.name} have the same id {dataset.id}: list the folds and "
                            "tests in one of them")
        if "all" not in dataset.folds:
            continue
        ratios = {*dataset.labelled, *(method.labelled for method in methods.values() if method.labelled)}
        if ratios != {ALL_LABELS}:
            raise UserError(f"dataset {dataset.name}: fold all has no cases to hide, its labelled must be {ALL_LABELS}")
        if "val" in dataset.tests:
            raise UserError(f"dataset {dataset.name}: fold all has no validation cases; known tests: own, ID, ID:train")


def _measures(content: Any) -> Measures:
    block = _Block(content, "measures", ("tolerance", "lesion_overlap", "min_lesion_volume", "classes", "best",
                                         "mirroring", "window"))
    numbers = {key: _number(block.content[key], key) for key in ("tolerance", "lesion_overlap", "min_lesion_volume")
               if key in block.content}
    window = tuple(_number(bound, "window") for bound in block.list("window", ()))
    if window and (len(window) != 2 or window[0] >= window[1]):
        raise UserError(f"window must be two rising intensities, e.g. [-1250, 250], got {list(window)}")
    return Measures(Criteria(**numbers), tuple(map(str, block.list("classes", ()))), block.flag("best", True),
                    block.flag("mirroring", True), window or None)      # type: ignore[arg-type]


def _published(content: Any, number: int, methods: Mapping[str, Method],
               datasets: Mapping[str, DatasetPlan]) -> Published:
    where = f"published row {number + 1}"
    block = _Block(content, where, ("method", "other", "source", "dataset", "labelled", "test", "class", *METRICS))
    scores = {measure: _number(block.content[measure], measure) for measure in METRICS if measure in block.content}
    if not scores:
        raise UserError(f"{where} has no measure; known: {', '.join(METRICS)}")
    dataset, labelled, test = (block.content.get(key) for key in ("dataset", "labelled", "test"))
    if dataset is not None and dataset not in datasets:
        raise UserError(f"{where}: unknown dataset {dataset!r}; {_known(dataset, datasets)}")
    tests = {name for plan in datasets.values() for name in plan.tests}
    if test is not None and str(test) not in tests:
        raise UserError(f"{where}: unknown test set {test!r}; known: {', '.join(sorted(tests))}")
    ratio = None if labelled is None else _amount(labelled, where)
    ratios = {amount for plan in datasets.values() for amount in plan.labelled} | \
        {method.labelled for method in methods.values() if method.labelled}
    if ratio is not None and ratio not in ratios:
        raise UserError(f"{where}: unknown ratio {ratio}; known: {', '.join(sorted(ratios))}")
    method = block.text("other", None)
    if method is None:
        method = block.choice("method", tuple(methods))
    elif "method" in block.content or method in methods:
        raise UserError(f"{where}: other is a method that only the paper has, method one of this study; give one")
    return Published(method, block.text("source"), scores, dataset, ratio, None if test is None else str(test),
                     block.text("class", None))


# ----------------------------------------------------------------------------------------------------------------------
# Trainers


@cache
def has_trainer(name: str) -> bool:
    """Whether nnU-Net finds a trainer of this name, as `nnUNetv2_train -tr` does."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    with contextlib.redirect_stdout(io.StringIO()):         # it tells where it looks
        try:
            return recursive_find_trainer_class_by_name(name) is not None
        except RuntimeError:
            return False


def known_trainers() -> list[str]:
    """Ours, and nnU-Net's own."""
    import nnunetv2

    from nnunet_synth import trainers
    folder = Path(nnunetv2.__file__).parent / "training" / "nnUNetTrainer"
    stock = {name for file in folder.rglob("*.py")
             for name in re.findall(r"^class (nnUNetTrainer\w*)", file.read_text(encoding="utf-8"), re.MULTILINE)}
    return [*trainers.__all__, *sorted(stock)]


# ----------------------------------------------------------------------------------------------------------------------
# Values


class _Block:
    """A mapping of the file whose keys are known; `where` is what messages call it. A default of `...` = required."""

    def __init__(self, content: Any, where: str, keys: Sequence[str]) -> None:
        if not isinstance(content, Mapping):
            raise UserError(f"{where} must be a mapping with the keys {', '.join(keys)}")
        for key in content:
            if key not in keys:
                raise UserError(f"{where}: unknown key {key!r}; {_known(key, keys)}")
        self.content, self.where = dict(content), where

    def _get(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None and default is ...:
            raise UserError(f"{self.where} lacks {key!r}")
        return default if value is None else value

    def text(self, key: str, default: Any = ...) -> Any:
        value = self._get(key, default)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{key} of {self.where} must be text, got {value!r}")
        return value

    def whole(self, key: str, default: Any = ..., low: int = 0, high: int | None = None) -> Any:
        value = self._get(key, default)
        return None if value is None else _whole(value, f"{key} of {self.where}", low, high)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{key} of {self.where} must be true or false, got {value!r}")
        return value

    def list(self, key: str, default: Any = ...) -> Sequence[Any]:
        value = self._get(key, default)
        if isinstance(value, str) or not isinstance(value, Sequence) or (default is ... and not value):
            raise UserError(f"{key} of {self.where} must be a list, e.g. [{value}]")
        if len({str(entry) for entry in value}) < len(value) and key not in ("patch_size", "spacing", "features"):
            raise UserError(f"{key} of {self.where} lists an entry twice")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise UserError(f"{key} of {self.where} must be a mapping of names to values, got {value!r}")
        return dict(value)

    def entries(self, key: str, default: Any = ...) -> dict[str, Any]:
        """A mapping of names to blocks, at least one unless there is a default."""
        self._get(key, default)
        found = {str(name): {} if entry is None else entry for name, entry in self.mapping(key).items()}
        if not found and default is ...:
            raise UserError(f"{key} of {self.where} is empty")
        return found

    def choice(self, key: str, known: Sequence[str], default: Any = ..., shown: Sequence[str] | None = None) -> Any:
        value = self._get(key, default)
        if value is not None and value not in known:
            raise UserError(f"{self.where}: unknown {key} {value!r}; {_known(value, shown or known)}")
        return value


def _known(value: Any, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(value), known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(known) or 'none'}"


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    ours = sorted({"seed", "teacher", "synthesizer", "synthesizer_preset", "synthesizer_options"} & settings.keys())
    if ours:
        raise UserError(f"{where}: {', '.join(ours)} of a training is set by the study (seeds, teacher, synthesizers)")
    try:
        TrainerConfig.from_plans_configuration(settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} must be a number, got {value!r}")
    return float(value)


def _positive(value: Any, where: str) -> float:
    if _number(value, where) <= 0:
        raise UserError(f"{where} must be above 0, got {value!r}")
    return float(value)


def _whole(value: Any, where: str, low: int = 0, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        raise UserError(f"{where} must be a whole number from {low}{upper}, got {value!r}")
    return value


def _amount(value: Any, where: str) -> str:
    """"10%" or "4", spelled as `nnunet_synth split` spells it in a fold's name."""
    from nnunet_synth.data.splits import parse_amount
    try:
        return parse_amount(value, num_cases=10**6)[0]
    except UserError as error:
        raise UserError(f"labelled of {where}: {value!r} is neither a percentage up to 100% nor a number of cases") \
            from error


def _fold(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
        raise UserError(f"folds of {where}: {value!r} is no fold: give an index or a name of splits_final.json, or all")
    return str(value)


def _test(value: Any, where: str) -> str:
    text = str(value)
    if text not in ("own", "val") and not re.fullmatch(r"[1-9]\d{0,2}(:train)?", text):
        raise UserError(f"{where}: unknown test set {text!r}; known: own, val, the id of another dataset (521), or "
                        "521:train for its labelled cases")
    return text


def _data(value: Any, where: str) -> TrainingData:
    match = re.fullmatch(r"(real)?(\+)?(?:synthetic:([1-9]\d*))?", str(value))
    if match is None or not (match[1] or match[3]) or bool(match[2]) != bool(match[1] and match[3]):
        raise UserError(f"{where}: unknown data {value!r}; known: real, real+synthetic:N, synthetic:N")
    return TrainingData(bool(match[1]), int(match[3] or 0))


# ----------------------------------------------------------------------------------------------------------------------
# YAML


def _read_yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which YAML would silently keep the last."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{key!r} stands twice in one block, line {node.start_mark.line + 1}: rename one")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)        # noqa: S506, a SafeLoader
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        raise UserError(f"not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error
