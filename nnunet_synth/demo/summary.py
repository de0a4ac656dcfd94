"""The demo's report: scores, curves and pictures out of what the commands have written."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from nnunet_synth import __version__
from nnunet_synth.demo.job import TOLERANCE, TRAINER, Job, hidden_fold, synthesizer_folder
from nnunet_synth.demo.runner import Runner
from nnunet_synth.evaluation.report import (
    Gallery,
    Picture,
    Report,
    Section,
    Table,
    Text,
    curves,
    write_report,
)
from nnunet_synth.evaluation.training_log import read_training_logs

LUNG_WINDOW = (-1250.0, 250.0)      # HU
NUM_PICTURES = 4
ENLARGED = 3                        # pixels of the report a pixel of the phantom


def write_summary(job: Job, runner: Runner) -> Path:
    """Write `report.html` (and .md, .json) into the demo's folder; returns its path."""
    fold = hidden_fold(job)
    scores = read_scores(job)
    report = Report("nnunet_synth demo: SA-CPS on a procedural chest CT", [
        Section("What was done", [Text(_introduction(job)), _steps(runner)]),
        Section("Scores on the test scans", [summary_table(scores), _case_table(scores)]),
        Section("Pictures", [*_test_pictures(job), Text("Left to right: the scan, the truth, the two predictions. "
                                                        "Lung window, the slice with the most infection.")]),
        Section("Training", _curves(job, fold)),
        Section("The synthesizer", _synthesizer(job, fold)),
    ], facts=_facts(job, runner))
    target = job.folder / "report.html"
    write_report(report, target)
    return target


def read_scores(job: Job) -> dict[str, dict]:
    """Trainer → the content of its `evaluation.json`."""
    return {trainer: json.loads((job.predictions(trainer) / "evaluation.json").read_text()) for trainer in job.trainers}


def _introduction(job: Job) -> str:
    scale = job.scale
    num_hidden = len(_split(job)["unlabelled"])
    return (
        f"Of {scale.num_labelled} labelled scans, {scale.num_visible} kept their labels for training, {num_hidden} had "
        f"theirs hidden, and the rest is for validation. {scale.num_unlabelled} more scans never had any. The "
        f"baseline, nnU-Net's own {scale.baseline}, sees the labelled scans; {TRAINER} sees the same labels, "
        f"and {num_hidden + scale.num_unlabelled} unlabelled scans with the synthetic images drawn to fit its "
        f"pseudo-labels. Same plans, same small network, same {scale.num_epochs * 250} iterations; in the "
        f"first {scale.ramp_up_epochs} epoch(s) the unlabelled terms are ramped up, which the paper does not do.\n"
        "This is one short run on made-up images: it shows that everything works together and what comes out, and "
        "says little about what the method is worth on patients.")


def _steps(runner: Runner) -> Table:
    rows = [[title, done["command"] or "–", done["seconds"]] for title, done in runner.journal.items()]
    return Table(["step", "command", "seconds"], rows, digits=0,
                 caption=f"{sum(done['seconds'] for done in runner.journal.values()):.0f} s in all. The commands need "
                         "the three nnUNet_… variables at the foot of this page.")


def summary_table(scores: dict[str, dict]) -> Table:
    """Mean and standard deviation of each trainer's scores."""
    rows = []
    for trainer, result in scores.items():
        summary = result["summary"]["infection"]
        numbers = (summary[metric][number] for metric in ("DSC", "NSD", "HD95") for number in ("mean", "sd"))
        rows.append([trainer, *numbers, summary["num_cases"] - summary["num_both_empty"], summary["num_both_empty"]])
    columns = ["trainer", "DSC", "sd", f"NSD ({TOLERANCE:g} mm)", "sd", "HD95 (mm)", "sd", "scans", "both empty"]
    return Table(columns, rows, "Mean and standard deviation over the test scans that have a score. Where truth and "
                 "prediction are both empty there is none; where only one is, DSC and NSD are 0 and HD95 is the "
                 "diagonal of the scan.")


def _case_table(scores: dict[str, dict]) -> Table:
    cases = [row["case"] for row in next(iter(scores.values()))["cases"]]
    rows = [[case, *(row[metric] for result in scores.values() for row in result["cases"] if row["case"] == case
                     for metric in ("DSC", "NSD"))] for case in cases]
    return Table(["scan", *(f"{metric}, {trainer}" for trainer in scores for metric in ("DSC", "NSD"))], rows)


def _test_pictures(job: Job) -> Iterator[Gallery]:
    from nnunet_synth.synthesizers.gallery import overlay
    truths = sorted((job.raw / "labelsTs").glob("*.nii.gz"))
    diseased = [path for path in truths if _read(path).any()][:NUM_PICTURES]
    for path in diseased:
        case = path.name.removesuffix(".nii.gz")
        truth = _read(path)
        best = int((truth > 0).sum((1, 2)).argmax())
        gray = _windowed(_read(job.raw / "imagesTs" / f"{case}_0000.nii.gz")[best])
        masks = {"truth": truth, **{trainer: _read(job.predictions(trainer) / path.name) for trainer in job.trainers}}
        yield Gallery([Picture.from_array(_enlarged(gray), case),
                       *(Picture.from_array(_enlarged(overlay(gray, mask[best])), name)
                         for name, mask in masks.items())])


def _read(path: Path) -> np.ndarray:
    import SimpleITK
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def _windowed(image: np.ndarray) -> np.ndarray:
    """HU [H, W] → uint8 [H, W, 3]."""
    low, high = LUNG_WINDOW
    gray = np.clip((image.astype(np.float32) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def _enlarged_file(path: Path, caption: str) -> Picture:
    from PIL import Image
    return Picture.from_array(_enlarged(np.asarray(Image.open(path).convert("RGB"))), caption)


def _curves(job: Job, fold: int) -> list:
    logs = {trainer: read_training_logs(job.results(trainer, fold)) for trainer in job.trainers}
    parts: list = [
        curves({trainer: _series(log, "Pseudo dice") for trainer, log in logs.items()}, "epoch", "pseudo Dice",
               "Validation Dice of patches, as nnU-Net logs it after each epoch of 250 iterations."),
        curves({trainer: _series(log, "train_loss") for trainer, log in logs.items()}, "epoch", "training loss",
               f"The training loss. That of {TRAINER} is the sum of its terms; the two are not comparable in height.")]
    own = job.results(TRAINER, fold) / "semi_supervised.jsonl"
    if own.exists():
        entries = [json.loads(line) for line in own.read_text(encoding="utf-8").splitlines()]
        losses = sorted({key for entry in entries for key in entry if key.startswith("loss")})
        series = {key: ([entry["epoch"] for entry in entries if key in entry],
                        [entry[key] for entry in entries if key in entry]) for key in losses}
        parts.append(curves(series, "epoch", "loss", f"The terms of {TRAINER}'s loss."))
    previews = sorted((job.results(TRAINER, fold) / "previews").glob("*.png"))
    if previews:
        parts.append(Gallery([_enlarged_file(previews[-1], "an unlabelled slice, both pseudo-labels, and the synthetic "
                                                           "images drawn from them, in the last epoch")]))
    return parts


def _series(log: dict[int, dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    epochs = [epoch for epoch in sorted(log) if name in log[epoch]]
    return [epoch + 1 for epoch in epochs], [log[epoch][name] for epoch in epochs]


def _synthesizer(job: Job, fold: int) -> list:
    folder = synthesizer_folder(job, fold)
    parts: list = []
    samples = sorted((folder / "samples").glob("*.png"))
    if samples:
        parts.append(Gallery([_enlarged_file(samples[-1], samples[-1].stem)],
                             "Fixed conditions: the real slice, its label, and what is drawn for the label."))
    if (folder / "progress.png").exists():
        parts.append(Gallery([Picture.from_file(folder / "progress.png", "the GAN's losses")]))
    metrics = json.loads((folder / "meta.json").read_text()).get("metrics", {})
    numbers = [[name, value] for name, value in metrics.items() if isinstance(value, int | float)]
    if numbers:
        parts.append(Table(["measured on held-out labels", "value"], numbers))
    return parts


def _split(job: Job) -> dict:
    splits = json.loads((job.preprocessed / "splits_final.json").read_text(encoding="utf-8"))
    return splits[hidden_fold(job)]


def _facts(job: Job, runner: Runner) -> dict[str, object]:
    from importlib.metadata import version
    folders = {name: value for name, value in runner.environment.items() if value.startswith(str(job.folder))}
    return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": job.device,
            "machine": f"{platform.machine()}, {platform.system()}", "Python": platform.python_version(),
            "nnunet_synth": __version__, "nnunetv2": version("nnunetv2"), "torch": version("torch"), "seed": job.seed,
            **folders}
