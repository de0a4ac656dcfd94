"""What `nnunet_synth select` leaves: ranking.csv, ranking.json, a gallery of each model and one page with all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_synth.atomic import atomic_folder, remove_folder, write_json, write_text
from nnunet_synth.csv_file import to_csv
from nnunet_synth.evaluation.report import (
    Cell,
    Gallery,
    Part,
    Picture,
    Report,
    Section,
    Table,
    Text,
    finite,
    write_report,
)
from nnunet_synth.quality.drawings import lines
from nnunet_synth.selection.candidates import Candidate
from nnunet_synth.selection.judging import Judged
from nnunet_synth.selection.ranking import Score, TrainedAcceptance
from nnunet_synth.synthesizers.gallery import write_gallery

COLUMNS = ("label", "image", "found")
CSV_FIELDS = ("rank", "name", "synthesizer", "checkpoint", "steps", "mean_rank", "fcn_dice", "laplacian_variance",
              "laplacian_ratio", "high_frequency_share", "acceptance", "probability_real", "images", "drawable",
              "judged_images", "rank_fcn_dice", "rank_sharpness", "rank_acceptance", "folder")


@dataclass(frozen=True)
class Selection:
    """The result: `scores` are those of `candidates` (by name), the best one first."""

    candidates: Mapping[str, Candidate]
    real: Score
    scores: list[Score]
    judged: Mapping[str, Judged]
    trained: TrainedAcceptance
    threshold: float
    facts: Mapping[str, Any]


def write_selection(selection: Selection, folder: Path) -> Path:
    """Write all files into the folder, those of a former selection are replaced; returns the path of the page."""
    write_galleries(selection, folder / "galleries")
    write_text(to_table(selection), folder / "ranking.csv")
    write_json(finite(to_json(selection)), folder / "ranking.json")
    sections = [Section("Ranking", list(_ranking(selection))),
                Section("Real or synthetic", list(_classifier(selection))),
                Section("Pictures", list(_pictures(selection, folder / "galleries")))]
    write_report(Report("Selection of synthesizers", sections, dict(selection.facts)), folder / "report.html")
    return folder / "report.html"


def write_galleries(selection: Selection, folder: Path) -> None:
    """A PNG for the real images and for each model: label | image | what the segmenter found."""
    remove_folder(folder)
    with atomic_folder(folder) as new:
        for name, judged in selection.judged.items():
            write_gallery(judged.rows, COLUMNS[:len(judged.rows[0])], new / _file(name))


def to_table(selection: Selection) -> str:
    """A row for each model, the best one first, and one for the real images."""
    return to_csv(CSV_FIELDS, ({**asdict(score), **_origin(selection, score),
                                **{f"rank_{name}": value for name, value in score.ranks.items()}}
                               for score in [*selection.scores, selection.real]))


def to_json(selection: Selection) -> dict[str, Any]:
    """All results, unrounded, and those of single images."""
    def of(score: Score) -> dict[str, Any]:
        judged = selection.judged[score.name]
        return {**asdict(score), **_origin(selection, score), "single_images": {
            "condition": judged.conditions, "case": list(judged.images.cases), "fcn_dice": judged.dice,
            "laplacian_variance": judged.laplacian, "high_frequency_share": judged.high_frequencies,
            "held_out": judged.held_out, "probability_real": judged.probability_real.tolist()}}

    return {"facts": dict(selection.facts), "threshold": selection.threshold,
            "classifier_accuracy": selection.trained.accuracy, "real": of(selection.real),
            "ranking": [of(score) for score in selection.scores]}


def summary(selection: Selection) -> str:
    """The ranking as a table for the terminal."""
    lines = [f"{'':>4}  {'model':28} {'FCN Dice':>8} {'sharpness':>9} {'accepted':>8}  mean rank"]
    for score in [*selection.scores, selection.real]:
        place, mean = ("", "") if score.rank is None else (f"{score.rank}.", f"{score.mean_rank:.2f}")
        lines.append(f"{place:>4}  {score.name:28} {_number(score.fcn_dice):>8} {_number(score.laplacian_ratio):>9} "
                     f"{_number(score.acceptance):>8}  {mean:>9}")
    lines.append(f"sharpness: variance of the Laplacian / that of the real images; accepted: share with P(real) ≥ "
                 f"{selection.threshold:g} of a classifier that is right in {_number(selection.trained.accuracy)} of "
                 "the held-out images")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# The page


def _ranking(selection: Selection) -> Iterator[Part]:
    yield Text("Every model drew images for the same labels of labelled training slices. Three criteria (LcGAN, 3.2) "
               "give each model a rank, the mean of the ranks decides: the FCN score, the Dice of the fold's own "
               "network on the synthetic images against the labels they were drawn for; sharpness, how near the "
               "variance of the Laplacian is to that of the real images (blur lowers it, noise raises it); and the "
               f"share of images that a network takes for real with a probability of {selection.threshold:g} or more.")
    columns = ["place", "model", "steps", "FCN Dice ↑", "Laplacian, synthetic / real", "high frequencies",
               "accepted ↑", "mean P(real)", "images", "mean rank ↓"]
    rows = [[score.rank or "–", score.name, _origin(selection, score).get("steps", "–"), score.fcn_dice,
             score.laplacian_ratio, score.high_frequency_share, score.acceptance, score.probability_real, score.images,
             score.mean_rank] for score in [*selection.scores, selection.real]]
    if len(selection.scores) > 1:
        rows[0][1] = Cell(rows[0][1], rows[0][1], bold=True)
    yield Table(columns, rows, "The last row is the real images that the labels belong to. What the segmenter finds in "
                "them is what it can find at all: it has learnt from them.")


def _classifier(selection: Selection) -> Iterator[Part]:
    yield Text(f"One network learnt to tell the real images from those of all models together. On the images of cases "
               f"that it had not seen, real or drawn for their labels, it is right in {selection.trained.accuracy:.3f} "
               "(mean of real and synthetic; chance: 0.5). Near 1 hardly any image is accepted, and the gate "
               "synthetic_accept_threshold would leave little to train with.")
    steps = list(range(1, len(selection.trained.losses) + 1))
    yield lines({"cross entropy": (steps, selection.trained.losses)}, "step", "cross entropy", "Its training.")


def _pictures(selection: Selection, folder: Path) -> Iterator[Part]:
    names = [score.name for score in [selection.real, *selection.scores]]
    yield Gallery([Picture.from_file(folder / _file(name), name) for name in names],
                  " | ".join(COLUMNS[:len(selection.judged[names[0]].rows[0])]))


def _origin(selection: Selection, score: Score) -> dict[str, Any]:
    candidate = selection.candidates.get(score.name)
    return {} if candidate is None else {"synthesizer": candidate.synthesizer, "checkpoint": candidate.checkpoint,
                                         "steps": candidate.meta.steps, "folder": str(candidate.folder)}


def _file(name: str) -> str:
    return f"{name.replace(' ', '_')}.png"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"
