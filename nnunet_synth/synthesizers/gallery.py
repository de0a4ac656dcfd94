"""Pictures of what a synthesizer draws: rows of real | label | synthetic, and the curves of its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nnunet_synth.atomic import atomic_file

GAP = 4             # pixels between two pictures
HEADER = 14         # pixels of the line of column titles
# Distinct on gray and for colour-blind readers (Okabe and Ito 2008); the first one is background, not drawn.
COLOURS = np.array([(0, 0, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (240, 228, 66), (204, 121, 167),
                    (0, 114, 178), (230, 159, 0)], dtype=np.float32)


def to_gray(image: np.ndarray) -> np.ndarray:
    """[C, H, W] in [-1, 1] → uint8 [H, W, 3]: three channels as colours, otherwise the first one in gray."""
    shown = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    return np.clip((shown.transpose(1, 2, 0) + 1) * 127.5, 0, 255).round().astype(np.uint8)


def overlay(gray: np.ndarray, classes: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """uint8 [H, W, 3] with the classes [H, W] (0 = background) in colours over it."""
    colours = COLOURS[np.where(classes > 0, 1 + (classes - 1) % (len(COLOURS) - 1), 0)]
    mixed = gray * (1 - opacity) + colours * opacity
    return np.where((classes > 0)[..., None], mixed, gray).round().astype(np.uint8)


def write_gallery(rows: Iterable[Sequence[np.ndarray]], titles: Sequence[str], target: str | Path) -> None:
    """One PNG of uint8 [H, W, 3] pictures of one size, row by row, a title above each column; atomic."""
    rows = [list(row) for row in rows]
    height, width = rows[0][0].shape[:2]
    canvas = np.full((HEADER + len(rows) * (height + GAP), len(titles) * (width + GAP), 3), 255, np.uint8)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            top, left = HEADER + number * (height + GAP), column * (width + GAP)
            canvas[top:top + height, left:left + width] = picture
    drawing = Image.fromarray(canvas)
    for column, title in enumerate(titles):
        ImageDraw.Draw(drawing).text((column * (width + GAP) + 2, 1), title, fill=(0, 0, 0))
    with atomic_file(target) as temporary:
        drawing.save(temporary)


def write_curves(log: Sequence[Mapping[str, Any]], target: str | Path) -> None:
    """One PNG of every logged number over the steps, the stages one after another; atomic.

    Args:
        log: entries with "stage", "step" and any further numbers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"generator": [], "discriminator": [], "learning rate": []}
    for key in dict.fromkeys(key for entry in log for key in entry):
        if key in ("stage", "step", "skipped", "seconds_per_step"):
            continue
        panel = next((name for name in panels if key.startswith(name.split()[0])), "generator")
        panels[panel].append(key)

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (panel, keys) in zip(figure.subplots(3, 1, sharex=True), panels.items(), strict=True):
        for key in keys:
            points = [(step, entry[key]) for step, entry in zip(_steps_so_far(log), log, strict=True) if key in entry]
            axes.plot(*zip(*points, strict=True), label=key, linewidth=1)
        axes.set_ylabel(panel)
        if keys:
            axes.legend(fontsize=7, loc="upper right")
    axes.set_xlabel("step")
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _steps_so_far(log: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps counted through all stages: each stage counts its own from 0."""
    offset, last_stage, last_step, steps = 0, None, 0, []
    for entry in log:
        if last_stage is not None and entry["stage"] != last_stage:
            offset += last_step
        last_stage, last_step = entry["stage"], entry["step"]
        steps.append(offset + last_step)
    return steps
