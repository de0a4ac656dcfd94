"""The report of a comparison: report.html, one page that needs nothing else, the same as Markdown, and quality.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synth.atomic import write_json
from nnunet_synth.evaluation.case_gallery import enlarged
from nnunet_synth.evaluation.report import Cell as Shown
from nnunet_synth.evaluation.report import Gallery, Part, Picture, Report, Section, Table, Text, finite, write_report
from nnunet_synth.quality.average_image import CODEC, as_picture
from nnunet_synth.quality.drawings import lines, points
from nnunet_synth.quality.image_measures import HEADINGS
from nnunet_synth.quality.image_set import ImageSet
from nnunet_synth.quality.measure import Quality
from nnunet_synth.quality.mm_fid import PairTest
from nnunet_synth.quality.window import Window

NUM_PICTURES = 6        # of a set, side by side
GRID = 4                # rows and columns of a grid
LONGEST_GRID = 4096     # pixels: larger images make smaller grids
GAP = 2                 # pixels between the images of a grid


def write_quality(quality: Quality, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write report.html, report.md, report.json and quality.json into the folder; returns the path of report.html."""
    sections = [Section("What was compared", list(_compared(quality))),
                Section("Overview", [_overview(quality)]),
                Section("Fidelity: MM-FID", list(_fidelity(quality))),
                Section("Variety: MM-STD", list(_variety(quality))),
                Section("Single images: sharpness, noise, superpixels", [_single_images(quality)]),
                Section("Intensities", list(_histograms(quality)))]
    if quality.maps:
        sections.append(Section("Map", [points(found, f"{method} of the features of {quality.map_of}.")
                                        for method, found in quality.maps.items()]))
    if quality.classifiers:
        sections.append(Section("Networks trained for this comparison", list(_classifiers(quality))))
    sections.append(Section("Pictures", list(_pictures(quality))))
    write_json(finite(to_json(quality, facts)), folder / "quality.json")
    page = folder / "report.html"
    write_report(Report("Quality of synthetic images", sections, {name: _in_words(fact) for name, fact
                                                                 in facts.items()}), page)
    return page


def _in_words(fact: object) -> object:
    """Nested settings as key=value."""
    if not isinstance(fact, Mapping):
        return fact
    return ", ".join(f"{name}={_in_words(value)}" for name, value in fact.items() if value is not None)


def to_json(quality: Quality, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All results, unrounded; NaN where there is none."""
    return {
        "facts": dict(facts), "warnings": quality.warnings, "window": asdict(quality.window),
        "sets": {one.name: {"images": len(one), "cases": len(set(one.cases)), "origin": one.origin,
                            "measures": {name: {"mean": measures.mean(name), "sd": measures.deviation(name),
                                                "images": len(measures.values[name])} for name in measures.values},
                            "average_jpeg_bytes": quality.jpeg_bytes[one.name],
                            "lesion_kl": quality.kl.get(one.name)}
                 for one in quality.sets for measures in [quality.measures[one.name]]},
        "extractors": quality.extractors, "missing_extractors": quality.missing,
        "headline": None if quality.headline is None else asdict(quality.headline),
        "cells": [asdict(cell) for cell in quality.cells],
        "mm_fid": quality.fid, "mm_std": quality.deviation,
        "mm_fid_tests": [asdict(test) for test in quality.fid_tests],
        "mm_std_tests": [asdict(test) for test in quality.deviation_tests],
        "classifiers": {trained.extractor.name: {"classes": trained.classes, "accuracy": trained.accuracy}
                        for trained in quality.classifiers},
    }


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def _compared(quality: Quality) -> Iterator[Part]:
    channels, height, width = quality.real.shape
    yield Text(f"{len(quality.methods)} set(s) of synthetic images against {quality.real.name}; images of {height} × "
               f"{width} pixels and {channels} channel(s). Intensities from {quality.window.low:g} to "
               f"{quality.window.high:g} count ({quality.window.reason}), others are cut off.")
    yield Table(["set", "images", "cases", "from"],
                [[one.name, len(one), len(set(one.cases)), one.origin] for one in quality.sets])
    rows = [[name, description] for name, description in quality.extractors.items()]
    rows += [[name, f"not used: {reason}"] for name, reason in quality.missing.items()]
    yield Table(["features", "network"], rows, "The networks whose features MM-FID and MM-STD compare. Distances of "
                "different networks cannot be compared with each other, nor with published ones of another network.")
    for warning in quality.warnings:
        yield Text(f"Warning: {warning}.")


def _overview(quality: Quality) -> Table:
    columns = {
        "FID ↓": {name: quality.headline.fid.get(name) for name in quality.measures} if quality.headline else {},
        "KID ↓": {name: quality.headline.kid.get(name) for name in quality.measures} if quality.headline else {},
        "MM-FID ↓": {name: float(np.mean(scores)) for name, scores in quality.fid.items()},
        "MM-STD ↑": {name: float(np.mean(scores)) for name, scores in quality.deviation.items()},
        "lesion KL (nats) ↓": quality.kl,
        **{HEADINGS[name]: {one: measures.mean(name) for one, measures in quality.measures.items()}
           for name in HEADINGS},
        "average as JPEG (kB)": {name: size / 1000 for name, size in quality.jpeg_bytes.items()},
    }
    columns = {title: _best(values, quality, title) for title, values in columns.items() if _is_known(values)}
    rows = [[one.name, len(one), *(cells.get(one.name) for cells in columns.values())] for one in quality.sets]
    network = quality.extractors.get("imagenet", "")
    headline = f"FID and KID: {network}, at {quality.headline.resolution}². " if quality.headline else ""
    if quality.headline and not quality.has_enough_for_fid:
        headline += (f"A set holds no more images than FID has features ({quality.headline.num_features}): FID is too "
                     "large by an amount that depends on their number; do not quote it. ")
    return Table(["set", "images", *columns], rows, headline + (
        "MM-FID and MM-STD: means over the cells of scores divided by the largest in each cell (MM-STD: the real set "
        "among them). Arrows point to the better end, the best method is bold. Sharpness, noise and file size have no "
        "better end: what counts is to be near the real images. A smaller average image means more variety at the same "
        "noise."))


def _is_known(values: Mapping[str, float | None]) -> bool:
    return any(value is not None and not math.isnan(value) for value in values.values())


def _best(values: Mapping[str, float | None], quality: Quality, title: str) -> dict[str, Shown]:
    """Cells with four digits that count; of columns with an arrow, the best method's is bold."""
    known = {method.name: values[method.name] for method in quality.methods
             if values.get(method.name) is not None and not math.isnan(values[method.name])}
    best = None
    if title.endswith(("↓", "↑")) and len(known) > 1:
        best = (min if title.endswith("↓") else max)(known, key=known.__getitem__)
    return {name: _cell(value, name == best) for name, value in values.items()}


def _cell(value: float | None, bold: bool = False) -> Shown:
    return Shown("–" if value is None or math.isnan(value) else _digits(value), value, bold)


def _digits(value: float) -> str:
    """Four digits that count, without an exponent."""
    if value == 0:
        return "0"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def _fidelity(quality: Quality) -> Iterator[Part]:
    methods = [method.name for method in quality.methods]
    yield Text("A cell is one network at one resolution. Each gives every method its Fréchet distance to the real "
               "images. The first column, the distance of one half of the real cases to the other half, is what "
               "different patients alone make of it, with half as many images, which makes it larger.")
    rows = [[cell.extractor, f"{cell.resolution}²", cell.num_features, _cell(cell.floor),
             *(_cell(cell.fid[name]) for name in methods)] for cell in quality.cells]
    yield Table(["features", "resolution", "number", "real halves", *methods], rows,
                "Fréchet distances as they are, smaller is better.")
    yield from _normalised(quality, quality.fid, quality.fid_tests, "MM-FID", "smaller is better")
    for name in quality.extractors:
        cells = [cell for cell in quality.cells if cell.extractor == name]
        resolutions = [cell.resolution for cell in cells]
        if len(resolutions) < 2:
            continue
        series = {"real halves": (resolutions, [cell.floor for cell in cells]),
                  **{method: (resolutions, [cell.fid[method] for cell in cells]) for method in methods}}
        yield lines(series, "pixels a side", "Fréchet distance", f"Features: {name}.", ticks=resolutions)


def _variety(quality: Quality) -> Iterator[Part]:
    names = [one.name for one in quality.sets]
    yield Text("The standard deviation over the images of a set, averaged over the features. A method that draws the "
               "same image again and again has none, whatever its FID.")
    rows = [[cell.extractor, f"{cell.resolution}²", cell.num_features, *(_cell(cell.deviation[name]) for name in names)]
            for cell in quality.cells]
    yield Table(["features", "resolution", "number", *names], rows, "Mean standard deviations as they are.")
    yield from _normalised(quality, quality.deviation, quality.deviation_tests, "MM-STD", "larger is more varied")


def _normalised(quality: Quality, scores: Mapping[str, Sequence[float]], tests: Sequence[PairTest], name: str,
                better: str) -> Iterator[Part]:
    rows = [[one, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values)]
            for one, values in scores.items()]
    yield Table(["set", name, "sd over cells", "cells"], rows, "Each cell divided by the largest score in it, then "
                f"averaged over the cells; {better}." + (" One method alone has 1 everywhere: compare it with another."
                                                         if len(scores) == 1 else ""))
    if any(not math.isnan(test.p) for test in tests):
        yield Table(["first", "second", "cells", "difference", "p", "p (Holm)"],
                    [[test.first, test.second, test.num_cells, test.difference, _p(test.p), _p(test.p_holm)]
                     for test in tests],
                    f"Differences first − second of the normalised scores, p of Wilcoxon's signed-rank test paired by "
                    f"cell, and after Holm's correction for {len(tests)} pair(s). The cells are several looks at the "
                    "same images: p tells how consistently the networks agree, not how other images would fare.")


def _p(p: float) -> Shown:
    return Shown("–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}", p)


def _single_images(quality: Quality) -> Table:
    shown = {name: title for name, title in HEADINGS.items()
             if any(len(measures.values[name]) for measures in quality.measures.values())}

    def cell(one: str, name: str) -> Shown:
        measures = quality.measures[one]
        mean, deviation = measures.mean(name), measures.deviation(name)
        spread = "" if math.isnan(deviation) else f" ± {_digits(deviation)}"
        text = "–" if math.isnan(mean) else _digits(mean) + spread
        return Shown(text, {"mean": mean, "sd": deviation, "images": len(measures.values[name])})

    rows = [[one.name, *(cell(one.name, name) for name in shown)] for one in quality.sets]
    probed = max(len(measures.values["noise_nlm"]) for measures in quality.measures.values())
    return Table(["set", *shown.values()], rows, (
        "Mean ± standard deviation over images; intensities in shares of the window. Sharpness of all images, noise "
        f"and superpixels of up to {probed}, evenly spread. High frequencies: above a quarter cycle a pixel. Noise: "
        "the standard deviation of what a denoiser removes. Under-segmentation error: the share of pixels where "
        "superpixels (SLIC, those of unsupervised masks) leak over the border of a lesion, of images with lesions."))


# ----------------------------------------------------------------------------------------------------------------------
# Drawings and pictures


def _histograms(quality: Quality) -> Iterator[Part]:
    edges, shares = quality.intensities
    yield lines({name: (edges, found) for name, found in shares.items()}, "intensity", "share of pixels",
                "All pixels; the outermost bins hold what lies outside the window.", steps=True)
    edges, shares = quality.lesions
    if shares:
        known = {name: value for name, value in quality.kl.items() if not math.isnan(value)}
        divergences = "; ".join(f"{name} {_digits(value)}" for name, value in known.items())
        yield lines({name: (edges, found) for name, found in shares.items()}, "intensity", "share of lesion pixels",
                    "Pixels of lesions." + (f" KL(real ‖ synthetic) in nats: {divergences}." if divergences else ""),
                    steps=True)
    else:
        yield Text("No set says where its lesions are, so their intensities are not compared.")


def _classifiers(quality: Quality) -> Iterator[Part]:
    rows = [[trained.extractor.name, ", ".join(trained.classes), trained.accuracy, 1 / len(trained.classes)]
            for trained in quality.classifiers]
    yield Table(["features", "classes", "accuracy", "chance"], rows, "Mean over the classes of the share of images of "
                "held-out cases that the network recognises. Where synthetic images are told from real ones for sure, "
                "something gives them away; near chance the network found nothing, and its features mean little.")
    for trained in quality.classifiers:
        steps = list(range(1, len(trained.losses) + 1))
        yield lines({"cross entropy": (steps, trained.losses)}, "step", "cross entropy",
                    f"Training of {trained.extractor.description}.")


def _pictures(quality: Quality) -> Iterator[Part]:
    for one in quality.sets:
        places = np.linspace(0, len(one) - 1, min(NUM_PICTURES, len(one))).round().astype(int)
        yield Gallery([Picture.from_array(enlarged(_picture(one, index, quality.window)), one.cases[index])
                       for index in places], title=one.name)
    yield Gallery([Picture.from_array(enlarged(quality.averages[one.name]),
                                      f"{one.name}: {quality.jpeg_bytes[one.name] / 1000:.1f} kB")
                   for one in quality.sets],
                  f"The mean of all images of each set, and its size as {CODEC}.", "Average images")
    for one in quality.sets:
        yield Gallery([Picture.from_array(grid(one, quality.window), one.name)], title=f"Grid of {one.name}, every "
                      "pixel as it is")


def grid(images: ImageSet, window: Window) -> np.ndarray:
    """uint8 picture of up to GRID × GRID images at full resolution, evenly taken from the set, row by row."""
    height, width = images.shape[1:]
    side = min(GRID, math.isqrt(len(images)), max(1, LONGEST_GRID // max(height, width)))
    chosen = np.linspace(0, len(images) - 1, side * side).round().astype(int)
    pictures = [np.pad(_picture(images, index, window), [(0, GAP), (0, GAP)] + [(0, 0)] * (images.shape[0] == 3),
                       constant_values=255) for index in chosen]
    rows = [np.concatenate(pictures[start:start + side], 1) for start in range(0, len(pictures), side)]
    return np.concatenate(rows)[:-GAP, :-GAP]


def _picture(images: ImageSet, index: int, window: Window) -> np.ndarray:
    return as_picture(window.to_gray(np.asarray(images.images[index])))
