"""STUDY.yaml → `Study`; docs/reproduce.md explains the file.

Every mistake in the file is one line that names the known values. Nothing is looked up on the disk here, so that a
study can be read, listed and shown where its data are not.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nnunet_synth.config import TrainerConfig
from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.segmentation import METRICS, Criteria
from nnunet_synth.study.plan import (
    ALL_LABELS,
    PAPER_CONDITIONS,
    ClusterPlan,
    DatasetPlan,
    Measures,
    Method,
    Network,
    Published,
    Study,
    SynthesizerPlan,
    TrainingData,
    slug_of,
)
from nnunet_synth.study.values import Block, a_number, a_positive, a_whole, known_values, read_yaml
from nnunet_synth.synthesizers import ENTRY_POINT_GROUP

STUDIES = Path(__file__).parents[1] / "studies"        # those that come with the package

# Announced, but perhaps not in this version: their methods are skipped with this reason, the rest of the study runs.
ANNOUNCED_SYNTHESIZERS = ("cs2", "um2i")


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
        return parse_study(read_yaml(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_study(content: Any) -> Study:
    """The study in what YAML makes of a file; raises UserError as `read_study`, without the file's name."""
    block = Block(content, "the study", ("name", "title", "description", "datasets", "seeds", "budget", "synthesizers",
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
                 datasets=datasets, seeds=tuple(a_whole(seed, "seeds", 0, 2**32 - 1) for seed in block.list("seeds")),
                 budget=budget, synthesizers=synthesizers, methods=methods, baseline=baseline, measures=measures,
                 published=tuple(_published(row, number, methods, datasets)
                                 for number, row in enumerate(block.list("published", ()))),
                 made_datasets=made_datasets, content=content)


def _dataset(name: str, content: Any) -> DatasetPlan:
    where = f"dataset {name}"
    block = Block(content, where, ("id", "configuration", "phantom", "convert", "network", "layouts", "clusters",
                                    "folds", "labelled", "by_group", "split_seed", "tests"))
    phantom = block.content.get("phantom")
    if phantom is not None:
        phantom = Block(phantom, f"phantom of {where}", ("num_labelled", "num_unlabelled", "num_test", "size",
                                                          "num_slices", "seed")).content
        phantom = {key: a_whole(value, f"{key} of the phantom", 0) for key, value in phantom.items()}
    network = block.content.get("network")
    return DatasetPlan(
        name, block.whole("id", low=1, high=999), configuration=block.text("configuration", "2d"), phantom=phantom,
        convert=block.text("convert", None), network=None if network is None else _network(network, where),
        layouts=block.choice("layouts", ("threshold", "lungmask", "labels"), None),
        clusters=_clusters(block.content.get("clusters"), where),
        folds=tuple(_fold(fold, where) for fold in block.list("folds", (0,))),
        labelled=tuple(_amount(amount, where) for amount in block.list("labelled", (ALL_LABELS,))),
        by_group=block.text("by_group", None), split_seed=block.whole("split_seed", 0, low=0),
        tests=tuple(_test(test, where) for test in block.list("tests", ("own",))))


def _network(content: Any, where: str) -> Network:
    block = Block(content, f"network of {where}", ("name", "features", "patch_size", "batch_size", "spacing"))
    name = block.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or "__" in name:
        raise UserError(f"network name {name!r} becomes a configuration: use letters, digits, single _, - and .")
    features = tuple(a_whole(number, "features", 1) for number in block.list("features"))
    patch = tuple(a_whole(side, "patch_size", 1) for side in block.list("patch_size", ())) or None
    spacing = tuple(a_positive(step, "spacing") for step in block.list("spacing", ())) or None
    if patch and any(side % 2 ** (len(features) - 1) for side in patch):
        raise UserError(f"patch_size {list(patch)} of {where} must be a multiple of {2 ** (len(features) - 1)}: each "
                        f"of {len(features)} stages but the first halves it")
    return Network(name, features, patch, block.whole("batch_size", None, low=1), spacing)


def _clusters(content: Any, where: str) -> ClusterPlan | None:
    if content is None:
        return None
    block = Block(content, f"clusters of {where}", ("method", "segmentation", "segments", "step"))
    method = block.choice("method", ("cs2", "superpixel"))
    settings = {name: block.content[key] for key, name in (("segmentation", "segmentation"),
                                                           ("segments", "num_segments"), ("step", "step"))
                if key in block.content}
    if settings and method != "superpixel":
        raise UserError(f"clusters of {where}: segmentation, segments and step belong to method superpixel")
    if "num_segments" in settings:
        a_whole(settings["num_segments"], f"segments of the clusters of {where}", 1)
    if "step" in settings:
        a_positive(settings["step"], f"step of the clusters of {where}")
    plan = ClusterPlan(method, settings)
    try:
        _ = plan.description
    except UserError as error:
        raise UserError(f"clusters of {where}: {error}") from error
    return plan


def _synthesizer(name: str, content: Any) -> SynthesizerPlan:
    where = f"synthesizer {name}"
    block = Block(content, where, ("synthesizer", "preset", "steps", "batch_size", "options", "perceptual"))
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
    block = Block(content, where, ("trainer", "settings", "synthesizer", "teacher", "labelled", "data", "draw_for",
                                    "configuration"))
    if not slug_of(name):
        raise UserError(f"{where}: its name needs a letter or a digit")
    trainer, settings = block.text("trainer"), block.mapping("settings")
    if not has_trainer(trainer):
        raise UserError(f"{where}: unknown trainer {trainer!r}; {known_values(trainer, known_trainers())}")
    if settings and trainer.startswith("nnUNetTrainer"):
        raise UserError(f"{where}: {trainer} is nnU-Net's own and takes no settings; use SupervisedTrainer, or leave "
                        "them out")
    _check_settings(settings, where)
    synthesizer = block.choice("synthesizer", tuple(synthesizers), None)
    labelled = block.content.get("labelled")
    data = _data(block.content.get("data", "real"), where)
    if data.has_synthetic and synthesizer is None:
        raise UserError(f"{where}: data {data} need a synthesizer; known: {', '.join(synthesizers) or 'none'}")
    configuration = block.text("configuration", None)
    draw_for = block.choice("draw_for", ("labels", "pool", "noise", PAPER_CONDITIONS), "labels")
    _check_drawing(where, data, draw_for, configuration, trainer)
    if synthesizer and draw_for == "noise" and synthesizers[synthesizer].missing is None:
        try:
            _ = synthesizers[synthesizer].mask_source
        except UserError as error:
            raise UserError(f"{where}: draw_for noise: {error}") from error
    return Method(name, trainer, settings, synthesizer, block.text("teacher", None),
                  None if labelled is None else _amount(labelled, where), data, draw_for, configuration,
                  synthesizers[synthesizer].missing if synthesizer else None)


def _check_drawing(where: str, data: TrainingData, draw_for: str, configuration: str | None, trainer: str) -> None:
    if data.are_volumes and draw_for not in ("labels", PAPER_CONDITIONS):
        raise UserError(f"{where}: data {data} are drawn for label volumes: set draw_for to labels or "
                        f"{PAPER_CONDITIONS}, not {draw_for}")
    if draw_for == PAPER_CONDITIONS and not data.are_volumes:
        raise UserError(f"{where}: draw_for {PAPER_CONDITIONS} is for data volumes, not {data}")
    if data.has_synthetic and not data.are_volumes and configuration and not configuration.startswith("2d"):
        raise UserError(f"{where}: configuration {configuration} learns from volumes, and data {data} are slices: use "
                        "data volumes or real+volumes")
    if data.are_volumes and configuration and draws_synthetic(trainer):
        raise UserError(f"{where}: {trainer} looks for the synthesizer in its own configuration {configuration}, and "
                        "data volumes are drawn in the dataset's: leave out configuration")


def _check_methods(methods: Mapping[str, Method], made_datasets: int | None) -> None:
    slugs: dict[str, str] = {}
    for method in methods.values():
        twin = slugs.setdefault(method.slug, method.name)
        if twin != method.name:
            raise UserError(f"methods {twin} and {method.name} would share the configuration name {method.slug}: "
                            "rename one")
        if method.data.has_synthetic and made_datasets is None:
            raise UserError(f"method {method.name} makes datasets of its own: set made_datasets to the first id that "
                            "they may take, e.g. 700")
        if method.teacher is None:
            continue
        if method.teacher not in methods:
            raise UserError(f"method {method.name}: unknown teacher {method.teacher!r}; "
                            f"{known_values(method.teacher, methods)}")
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
    block = Block(content, "measures", ("tolerance", "lesion_overlap", "min_lesion_volume", "classes", "best",
                                         "mirroring", "window"))
    numbers = {key: a_number(block.content[key], key) for key in ("tolerance", "lesion_overlap", "min_lesion_volume")
               if key in block.content}
    window = tuple(a_number(bound, "window") for bound in block.list("window", ()))
    if window and (len(window) != 2 or window[0] >= window[1]):
        raise UserError(f"window must be two rising intensities, e.g. [-1250, 250], got {list(window)}")
    return Measures(Criteria(**numbers), tuple(map(str, block.list("classes", ()))), block.flag("best", True),
                    block.flag("mirroring", True), window or None)      # type: ignore[arg-type]


def _published(content: Any, number: int, methods: Mapping[str, Method],
               datasets: Mapping[str, DatasetPlan]) -> Published:
    where = f"published row {number + 1}"
    block = Block(content, where, ("method", "other", "source", "dataset", "labelled", "test", "class", *METRICS))
    scores = {measure: a_number(block.content[measure], measure) for measure in METRICS if measure in block.content}
    if not scores:
        raise UserError(f"{where} has no measure; known: {', '.join(METRICS)}")
    dataset, labelled, test = (block.content.get(key) for key in ("dataset", "labelled", "test"))
    if dataset is not None and dataset not in datasets:
        raise UserError(f"{where}: unknown dataset {dataset!r}; {known_values(dataset, datasets)}")
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


def draws_synthetic(name: str) -> bool:
    """Whether one of our trainers draws with a synthesizer while it trains."""
    from nnunet_synth import trainers
    from nnunet_synth.trainers.synthesis import DrawsSynthetic
    return name in trainers.__all__ and issubclass(getattr(trainers, name), DrawsSynthetic)


def known_trainers() -> list[str]:
    """Ours, and nnU-Net's own."""
    import nnunetv2

    from nnunet_synth import trainers
    folder = Path(nnunetv2.__file__).parent / "training" / "nnUNetTrainer"
    stock = {name for file in folder.rglob("*.py")
             for name in re.findall(r"^class (nnUNetTrainer\w*)", file.read_text(encoding="utf-8"), re.MULTILINE)}
    return [*trainers.__all__, *sorted(stock)]


# ----------------------------------------------------------------------------------------------------------------------
# What some values must be


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    ours = sorted({"seed", "teacher", "synthesizer", "synthesizer_preset", "synthesizer_options"} & settings.keys())
    if ours:
        raise UserError(f"{where}: {', '.join(ours)} of a training is set by the study (seeds, teacher, synthesizers)")
    try:
        TrainerConfig.from_plans_configuration(settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


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
    match = re.fullmatch(r"(?P<real>real)?(?P<plus>\+)?(?:synthetic:(?P<slices>[1-9]\d*)|"
                         r"(?P<volumes>volumes)(?::(?P<number>[1-9]\d*))?)?", str(value))
    drawn = match is not None and bool(match["slices"] or match["volumes"])
    if match is None or not (match["real"] or drawn) or bool(match["plus"]) != bool(match["real"] and drawn):
        raise UserError(f"{where}: unknown data {value!r}; known: real, synthetic:N, volumes, volumes:N, and "
                        "real+ before the last three")
    if match["volumes"]:
        return TrainingData(bool(match["real"]), int(match["number"]) if match["number"] else None, are_volumes=True)
    return TrainingData(bool(match["real"]), int(match["slices"] or 0))
