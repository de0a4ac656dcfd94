"""The runs that learn, predict and are judged: pretraining, synthetic data, training, prediction, evaluation."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_synth.atomic import atomic_folder, remove_folder, write_json
from nnunet_synth.data.raw_images import list_cases
from nnunet_synth.data.splits import splits_file
from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.segmentation import classes_of
from nnunet_synth.json_file import read_object
from nnunet_synth.study.place import PLANS, DatasetFiles, Folds
from nnunet_synth.study.plan import PAPER_CONDITIONS, Measures, Method, SynthesizerPlan
from nnunet_synth.study.run import Command, NotPossibleError, Run, is_newer

FINAL, BEST = "final", "best"           # nnU-Net's checkpoint_final.pth and checkpoint_best.pth
FINGERPRINT = "dataset_fingerprint.json"


@dataclass(frozen=True)
class Pretrain(Run):
    """A synthesizer for one fold; all methods and seeds that use it share it."""

    files: DatasetFiles = None          # type: ignore[assignment]
    plan: SynthesizerPlan = None        # type: ignore[assignment]
    configuration: str = "2d"
    fold: int | str = 0

    @property
    def folder(self) -> Path:
        return self.files.fold_folder(self.plan.synthesizer, self.configuration, self.fold)

    def is_done(self) -> bool:
        from nnunet_synth.synthesizers.checkpoint import META_FILE, load_meta
        if not (self.folder / META_FILE).is_file():
            return False
        meta = load_meta(self.folder)
        if meta.preset not in (None, self.plan.preset):
            raise UserError(f"{self.folder} holds a synthesizer of preset {meta.preset}, this study asks for "
                            f"{self.plan.preset}: name the study's synthesizer otherwise than {self.plan.name}, or "
                            "pretrain again with --force")
        if meta.split_sha256 != self.files.experiment(self.configuration, self.fold).split_sha256:
            raise UserError(f"{self.folder} holds a synthesizer that was trained on another split: pretrain it again "
                            "with --force")
        if not meta.metrics.get("finished"):
            return False
        if self.plan.steps is not None and meta.steps != self.plan.steps:
            raise UserError(f"{self.folder} holds a synthesizer of {meta.steps} steps, this study asks for "
                            f"{self.plan.steps}: name the study's synthesizer otherwise than {self.plan.name}, or "
                            "pretrain again with --force")
        return True

    def commands(self) -> list[Command]:
        plan, (option, name) = self.plan, self._trained
        numbers = [(flag, str(value)) for flag, value in (("--steps", plan.steps), ("--batch-size", plan.batch_size))
                   if value is not None]
        resume = ("--c",) if (self.folder / "train_state.pt").exists() else ()
        return [("nnunet_synth", "pretrain", str(self.files.id), self.configuration, str(self.fold), option,
                 name, "--preset", plan.preset,
                 *(part for key, value in plan.options.items() for part in ("--option", f"{key}={json.dumps(value)}")),
                 *(part for pair in numbers for part in pair), *self._features,
                 "--checkpoint-every", "200", "--device", self.files.place.device, *resume)]

    @property
    def _trained(self) -> tuple[str, str]:
        return "--synthesizer", self.plan.synthesizer

    @property
    def _features(self) -> tuple[str, ...]:
        return "--perceptual", self.plan.perceptual

    def lock_file(self, folder: Path) -> Path:
        return self.folder / ".study.lock"


@dataclass(frozen=True)
class PretrainMasks(Pretrain):
    """A source of masks from noise for one fold, beside the synthesizer that draws for them."""

    @property
    def _trained(self) -> tuple[str, str]:
        return "--mask-source", self.plan.synthesizer

    @property
    def _features(self) -> tuple[str, ...]:
        return ()           # it has no perceptual loss


@dataclass(frozen=True)
class MakeData(Run):
    """A raw dataset of real and synthetic cases, with the plans and the fold of the dataset it is made from."""

    files: DatasetFiles = None          # type: ignore[assignment]
    made: DatasetFiles = None           # type: ignore[assignment]
    folds: Folds = None                 # type: ignore[assignment]
    fold: str = "0"
    ratio: str = "100%"
    method: Method = None               # type: ignore[assignment]
    synthesizer: str = "sean"
    configuration: str = "2d"

    @property
    def drawn(self) -> Path:
        return self.files.place.folder / "synthetic" / self.made.name

    @property
    def _recipe(self) -> dict[str, Any]:
        from nnunet_synth.data.splits import split_sha256
        sha256 = "all" if self.fold == "all" else split_sha256(self.folds.parts(self.fold, self.ratio))
        return {"of": self.files.name, "split_sha256": sha256, "data": str(self.method.data),
                "synthesizer": self.synthesizer, "drawn_for": self.method.draw_for}

    def is_done(self) -> bool:
        if not self.made.is_there:
            return False
        content = read_object(self.made.raw / "dataset.json", "restore it", "correct it")
        if content.get("nnunet_synth", {}).get("study") != self._recipe:
            raise UserError(f"dataset id {self.made.id} is taken by {self.made.raw}, which is made of something else: "
                            "change made_datasets, or remove it")
        there = all((self.made.preprocessed / name).is_file()
                    for name in (f"{PLANS}.json", "dataset.json", FINGERPRINT, "splits_final.json"))
        # Configurations may have been added since.
        return there and self.made.plans()["configurations"] == self.files.plans()["configurations"]

    def commands(self) -> list[Command]:
        if self.drawn.is_dir():         # it appears complete or not at all
            return []
        number = self.method.data.num_synthetic
        return [("nnunet_synth", "sample", str(self.files.id), self.configuration,
                 str(self.folds.indices[self.fold, self.ratio]), "--synthesizer", self.synthesizer, *self._drawn_for,
                 *(() if number is None else ("-n", str(number))), "--output", str(self.drawn), "--device",
                 self.files.place.device)]

    @property
    def _drawn_for(self) -> tuple[str, ...]:
        if not self.method.data.are_volumes:
            return "--from", self.method.draw_for
        return "--volumes", *(("--paper-conditions",) if self.method.draw_for == PAPER_CONDITIONS else ())

    def finish(self) -> None:
        real, held_out = self._real()
        ending, synthetic = self.files.file_ending, self.made_ids()
        if not self.made.is_there:
            with atomic_folder(self.made.raw) as folder:
                for source, cases in ((self.files.raw, [*real, *held_out]), (self.drawn, synthetic)):
                    images = list_cases(source / "imagesTr", ending)
                    for case in cases:
                        for file in images[case]:
                            link(file, folder / "imagesTr" / file.name)
                        link(source / "labelsTr" / f"{case}{ending}", folder / "labelsTr" / f"{case}{ending}")
                write_json(self._dataset_json(len(real) + len(held_out) + len(synthetic)), folder / "dataset.json")
        write_json({**self.files.plans(), "dataset_name": self.made.name}, self.made.plans_file)
        shutil.copyfile(self.made.raw / "dataset.json", self.made.preprocessed / "dataset.json")
        # nnU-Net's trainers want one; it goes with the plans.
        shutil.copyfile(self.files.preprocessed / FINGERPRINT, self.made.preprocessed / FINGERPRINT)
        write_json([{"name": f"{self.fold}_{self.ratio}", "train": sorted([*real, *synthetic]), "val": held_out}],
                   splits_file(self.made.preprocessed))

    def made_ids(self) -> list[str]:
        return list(list_cases(self.drawn / "imagesTr", self.files.file_ending))

    def _real(self) -> tuple[list[str], list[str]]:
        """Labelled training cases, if they take part, and validation cases."""
        if self.fold == "all":
            return (self.files.label_ids() if self.method.data.real else []), []
        parts = self.folds.parts(self.fold, self.ratio)
        return (list(parts["train"]) if self.method.data.real else []), list(parts["val"])

    def _dataset_json(self, number: int) -> dict[str, Any]:
        original = read_object(self.files.raw / "dataset.json", "restore it", "correct it")
        return {**original, "numTraining": number, "name": self.made.name,
                "overwrite_image_reader_writer": self.files.plans()["image_reader_writer"],
                "nnunet_synth": {**original.get("nnunet_synth", {}), "study": self._recipe}}

    def shown(self) -> list[str]:
        return [*super().shown(), f"# put {self.method.data} cases into {self.made.raw}"]


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class PreprocessMade(Run):
    """nnU-Net's preprocessing of a dataset that the study made, with the plans it got; of one configuration at a time,
    since all copy the true label maps to the same place."""

    made: DatasetFiles = None           # type: ignore[assignment]
    configuration: str = "2d"

    def lock_file(self, folder: Path) -> Path:
        return self.made.place.preprocessed / f".study_{self.made.id:03d}.lock"

    def is_done(self) -> bool:
        folder = self.made.experiment(self.configuration).data_folder
        return all((folder / f"{case}.pkl").is_file() for case in self.made.label_ids()) and \
            (self.made.preprocessed / "gt_segmentations").is_dir()

    def commands(self) -> list[Command]:
        return [("nnUNetv2_preprocess", "-d", str(self.made.id), "-c", self.configuration, "-np",
                 "1" if self.made.place.device == "cpu" else "8")]


@dataclass(frozen=True)
class Train(Run):
    """One training of nnU-Net; the validation of its final checkpoint belongs to it where it is a test."""

    files: DatasetFiles = None          # type: ignore[assignment]
    trainer: str = "nnUNetTrainer"
    configuration: str = "2d"
    fold: int | str = 0
    needs_validation: bool = False

    @property
    def folder(self) -> Path:
        return self.files.fold_folder(self.trainer, self.configuration, self.fold)

    @property
    def is_trained(self) -> bool:
        return (self.folder / "checkpoint_final.pth").is_file()

    def is_done(self) -> bool:
        # summary.json is the last thing that nnU-Net writes.
        return self.is_trained and (not self.needs_validation or (self.folder / "validation/summary.json").is_file())

    def commands(self) -> list[Command]:
        resume: tuple[str, ...] = ()
        if self.is_trained:
            resume = ("--val",)
        elif any(self.folder.glob("checkpoint_*.pth")):
            resume = ("--c",)
        return [("nnUNetv2_train", str(self.files.id), self.configuration, str(self.fold), "-tr", self.trainer,
                 "-device", self.files.place.device, *resume)]

    def lock_file(self, folder: Path) -> Path:
        return self.folder / ".study.lock"


@dataclass(frozen=True)
class Predict(Run):
    """Predictions of one checkpoint for one test set; the folder appears when they are complete."""

    trained: Train = None               # type: ignore[assignment]
    images: Path = Path()
    target: Path = Path()
    checkpoint: str = FINAL
    mirroring: bool = True

    @property
    def _source(self) -> Path:
        return self.trained.folder / f"checkpoint_{self.checkpoint}.pth"

    @property
    def _unfinished(self) -> Path:
        return self.target.with_name(f".{self.target.name}.unfinished")

    def is_done(self) -> bool:
        return is_newer(self.target, self._source)

    def begin(self) -> None:
        if not self._source.is_file():
            raise UserError(f"{self._source} does not exist: the training kept no {self.checkpoint} checkpoint")
        if not self.images.is_dir():
            raise UserError(f"{self.images} does not exist: there is nothing to predict")
        for folder in (self.target, self._unfinished):      # of an older training, or of a run that was killed
            remove_folder(folder)

    def commands(self) -> list[Command]:
        train = self.trained
        on_cpu = ("-npp", "1", "-nps", "1") if train.files.place.device == "cpu" else ()
        return [("nnUNetv2_predict", "-i", str(self.images), "-o", str(self._unfinished), "-d", str(train.files.id),
                 "-c", train.configuration, "-f", str(train.fold), "-tr", train.trainer, "-chk",
                 f"checkpoint_{self.checkpoint}.pth", "-device", train.files.place.device, *on_cpu,
                 *(() if self.mirroring else ("--disable_tta",)))]

    def shown(self) -> list[str]:
        return [line.replace(str(self._unfinished), str(self.target)) for line in super().shown()]

    def finish(self) -> None:
        os.utime(self._unfinished)
        os.replace(self._unfinished, self.target)


@dataclass(frozen=True)
class Scores:
    """Which cell of the study the scores of a run are; `train` is the id of its training."""

    dataset: str
    test: str
    fold: str
    ratio: str
    method: str
    seed: int
    checkpoint: str
    train: str


@dataclass(frozen=True)
class Evaluate(Run):
    """Predictions against the truth.

    Attributes:
        held_out: (folds, fold, ratio) whose validation cases are put into `truth` first; None = it is there.
        what: the row of the table that the scores belong to.
    """

    predictions: Path = Path()
    truth: Path = Path()
    target: Path = Path()
    dataset_json: Path = Path()
    measures: Measures = Measures()
    held_out: tuple[Folds, str, str] | None = None
    what: Scores = None                 # type: ignore[assignment]

    @property
    def results(self) -> Path:
        return self.target / "evaluation.json"

    def is_done(self) -> bool:
        if not is_newer(self.results, self.predictions):
            return False
        found, wanted = json.loads(self.results.read_text(encoding="utf-8")), self.measures
        classes = {row["class"] for row in found["cases"]}
        return all(found.get(key) == getattr(wanted.criteria, key)
                   for key in ("tolerance", "lesion_overlap", "min_lesion_volume")) and \
            (not wanted.classes or classes == set(wanted.classes))

    def begin(self) -> None:
        if self.held_out is not None:
            folds, fold, ratio = self.held_out
            remove_folder(self.truth)
            with atomic_folder(self.truth) as folder:
                for case in folds.parts(fold, ratio)["val"]:
                    name = f"{case}{folds.files.file_ending}"
                    link(folds.files.preprocessed / "gt_segmentations" / name, folder / name)
        elif not self.truth.is_dir():
            raise NotPossibleError(f"{self.truth} does not exist: without these labels there are no scores; the "
                                   f"predictions are in {self.predictions}")
        self._check_labels()

    def _check_labels(self) -> None:
        """A test set of another dataset must mean the same by the values of its labels."""
        other = self.truth.parent / "dataset.json"
        if not other.is_file() or other == self.dataset_json:
            return
        ours, theirs = classes_of(self.dataset_json)[0], classes_of(other)[0]
        compared = self.measures.classes or tuple(name for name in ours if name in theirs)
        wrong = [name for name in compared if ours.get(name) != theirs.get(name)]
        if wrong or not compared:
            raise UserError(f"{other} and {self.dataset_json} differ in the labels {', '.join(wrong or ours)}: convert "
                            "one of the two datasets again with the same values, or name others in classes")

    def commands(self) -> list[Command]:
        criteria = self.measures.criteria
        return [("nnunet_synth", "evaluate", str(self.predictions), str(self.truth), "--tolerance",
                 f"{criteria.tolerance:g}", "--lesion-overlap", f"{criteria.lesion_overlap:g}", "--min-lesion-volume",
                 f"{criteria.min_lesion_volume:g}", *(("--labels", *self.measures.classes) if self.measures.classes
                                                      else ()),
                 "--dataset-json", str(self.dataset_json), "--output", str(self.target))]
