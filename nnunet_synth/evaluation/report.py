"""The one writer of reports: parts (text, table, figure, gallery) → HTML, Markdown and JSON.

    report = Report("Demo", [Section("Scores", [Table(["trainer", "DSC"], [["SACPSTrainer", 0.71]])])])
    write_report(report, folder / "report.html")        # and report.md, report.json, report_files/

The HTML is one file that needs nothing else: pictures are inside, and it loads nothing from the network.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.atomic import atomic_folder, remove_folder, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MEDIA_TYPES = {"png": "image/png", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Picture:
    """An encoded image; `form` is "png" or "svg"."""

    content: bytes
    form: str
    caption: str = ""

    @classmethod
    def from_array(cls, array: np.ndarray, caption: str = "") -> Picture:
        """From uint8 [H, W] or [H, W, 3]."""
        from PIL import Image
        encoded = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(encoded, "PNG", optimize=True)
        return cls(encoded.getvalue(), "png", caption)

    @classmethod
    def from_file(cls, path: Path, caption: str = "") -> Picture:
        return cls(path.read_bytes(), path.suffix[1:].lower(), caption)

    @property
    def data_uri(self) -> str:
        return f"data:{MEDIA_TYPES[self.form]};base64,{base64.b64encode(self.content).decode()}"


# The parts. Each has a `kind` that the template knows and `content`, what of it goes into the JSON. -------------------

@dataclass(frozen=True)
class Text:
    """Paragraphs; code is shown as it is, in a box."""

    text: str
    is_code: bool = False
    kind = "text"

    @property
    def pictures(self) -> list[Picture]:
        return []

    def content(self) -> dict[str, Any]:
        return {"text": self.text}

    def markdown(self, files: Sequence[str]) -> str:
        return f"```\n{self.text}\n```" if self.is_code else self.text


@dataclass(frozen=True)
class Cell:
    """What a table shows, the value behind it for the JSON, and whether it stands out (the best of its column)."""

    text: str
    value: object
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text, numbers and Cells; `digits` decimals are shown, the JSON keeps all. NaN and None are empty."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    digits: int = 3
    kind = "table"

    @property
    def pictures(self) -> list[Picture]:
        return []

    @property
    def cells(self) -> list[list[Cell]]:
        return [[value if isinstance(value, Cell) else Cell(self._shown(value), value) for value in row]
                for row in self.rows]

    def _shown(self, value: object) -> str:
        if value is None or isinstance(value, float) and math.isnan(value):
            return "–"
        return f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)

    def content(self) -> dict[str, Any]:
        return {"caption": self.caption, "columns": list(self.columns),
                "rows": [[cell.value for cell in row] for row in self.cells]}

    def markdown(self, files: Sequence[str]) -> str:
        shown = [[f"**{cell.text}**" if cell.bold else cell.text for cell in row] for row in self.cells]
        lines = [list(self.columns), ["---"] * len(self.columns), *shown]
        table = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
        return f"{table}\n\n{self.caption}" if self.caption else table


@dataclass(frozen=True)
class Figure:
    """A drawing, and the numbers it shows."""

    picture: Picture
    values: dict[str, Any] = field(default_factory=dict)
    kind = "figure"

    @property
    def pictures(self) -> list[Picture]:
        return [self.picture]

    def content(self) -> dict[str, Any]:
        return {"caption": self.picture.caption, "values": self.values}

    def markdown(self, files: Sequence[str]) -> str:
        return f"![{self.picture.caption}]({files[0]})\n\n{self.picture.caption}"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, each with its caption, below a title."""

    items: Sequence[Picture]
    caption: str = ""
    title: str = ""
    kind = "gallery"

    @property
    def pictures(self) -> list[Picture]:
        return list(self.items)

    def content(self) -> dict[str, Any]:
        return {"title": self.title, "caption": self.caption, "pictures": [picture.caption for picture in self.items]}

    def markdown(self, files: Sequence[str]) -> str:
        images = "\n".join(f"![{picture.caption}]({file})" for picture, file in zip(self.items, files, strict=True))
        return "\n\n".join(filter(None, [self.title and f"### {self.title}", images, self.caption]))


Part = Text | Table | Figure | Gallery


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    title: str
    sections: Sequence[Section]
    facts: dict[str, Any] = field(default_factory=dict)     # versions, device, date, …: at the foot, and in the JSON


# Drawing ------------------------------------------------------------------------------------------------------------

def curves(series: dict[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str,
           caption: str = "") -> Figure:
    """A line for each name of `series` → (x, y)."""
    from matplotlib.figure import Figure as Drawing
    drawing = Drawing(figsize=(7, 3.6), layout="constrained")
    axes = drawing.add_subplot(xlabel=x_label, ylabel=y_label)
    for name, (x, y) in series.items():
        axes.plot(x, y, label=name, linewidth=1.6)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if series:
        axes.legend(frameon=False)
    values = {name: {x_label: list(map(float, x)), y_label: list(map(float, y))} for name, (x, y) in series.items()}
    return Figure(draw(drawing, caption), values)


def draw(drawing: Drawing, caption: str = "") -> Picture:
    """A matplotlib figure as SVG; the same figure gives the same bytes."""
    import matplotlib
    encoded = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nnunet_synth", "svg.fonttype": "none"}):
        drawing.savefig(encoded, format="svg", metadata={"Date": None})
    return Picture(encoded.getvalue(), "svg", caption)


# Writing ------------------------------------------------------------------------------------------------------------

def write_report(report: Report, target: Path) -> None:
    """Write `target` (HTML) and, beside it, the same as Markdown with its pictures in `<stem>_files/`, and as JSON.

    Each file appears complete or not at all; a former report of this name is replaced.
    """
    write_text(_html(report), target)
    write_text(_markdown(report, target.with_name(f"{target.stem}_files")), target.with_suffix(".md"))
    write_json(finite({"title": report.title, "facts": report.facts,
                        "sections": [{"title": section.title,
                                      "parts": [{"kind": part.kind, **part.content()} for part in section.parts]}
                                     for section in report.sections]}), target.with_suffix(".json"))


def _html(report: Report) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.jinja").render(report=report)


def _markdown(report: Report, folder: Path) -> str:
    """The text; writes the pictures that it shows into `folder`."""
    blocks = [f"# {report.title}"]
    pictures: list[tuple[str, Picture]] = []
    for section in report.sections:
        blocks.append(f"## {section.title}")
        for part in section.parts:
            named = [(f"{len(pictures) + i:03d}.{picture.form}", picture) for i, picture in enumerate(part.pictures)]
            pictures += named
            blocks.append(part.markdown([f"{folder.name}/{name}" for name, _ in named]))
    if report.facts:
        blocks += ["---", "\n".join(f"- {name}: {value}" for name, value in report.facts.items())]
    remove_folder(folder)
    if pictures:
        with atomic_folder(folder) as temporary:
            for name, picture in pictures:
                (temporary / name).write_bytes(picture.content)
    return "\n\n".join(blocks) + "\n"


def finite(content: object) -> Any:
    """JSON knows neither NaN nor infinity, nor NumPy's numbers."""
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content if isinstance(content, str | int | float | bool | None) else str(content)
