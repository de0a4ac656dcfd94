"""The report: self-contained HTML, Markdown and JSON that say the same."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunet_synth.evaluation.report import Cell, Gallery, Picture, Report, Section, Table, Text, curves, write_report
from tests.evaluation.browser import chromium


@pytest.fixture
def report():
    square = np.zeros((8, 8, 3), np.uint8)
    return Report("A <demo> & more", [
        Section("Scores", [Text("First.\nSecond <b>."), Text("nnunet_synth demo", is_code=True),
                           Table(["trainer", "DSC", "n"], [["a|b", 0.123456, 3], ["c", math.nan, None]], "per case")]),
        Section("Curves", [curves({"loss": ([0, 1, 2], [1.0, 0.5, 0.25])}, "epoch", "loss", "falls"),
                           Gallery([Picture.from_array(square, 'one "quoted"'), Picture.from_array(square[..., 0])])]),
    ], facts={"device": "CPU", "seconds": np.float32(1.5)})


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_and_needs_nothing_else(report, tmp_path):
    write_report(report, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    images = [attrs["src"] for tag, attrs in tags.seen if tag == "img"]
    assert len(images) == 3 and all(source.startswith("data:image/") for source in images)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert not re.search(r'(src|href)="(?!data:)', html) and "@import" not in html
    assert "A &lt;demo&gt; &amp; more" in html and "Second &lt;b&gt;." in html
    assert ">0.123<" in html and ">–<" in html


def test_markdown_shows_the_same(report, tmp_path):
    write_report(report, tmp_path / "report.html")
    text = (tmp_path / "report.md").read_text()
    assert "| a\\|b | 0.123 | 3 |" in text and "| c | – | – |" in text and "```\nnnunet_synth demo\n```" in text
    linked = re.findall(r"\]\((.*?)\)", text)
    assert len(linked) == 3 and all((tmp_path / name).is_file() for name in linked)
    assert (tmp_path / linked[1]).read_bytes().startswith(b"\x89PNG")


def test_json_keeps_the_numbers(report, tmp_path):
    write_report(report, tmp_path / "report.html")
    content = json.loads((tmp_path / "report.json").read_text())
    table = content["sections"][0]["parts"][2]
    assert table["rows"] == [["a|b", 0.123456, 3], ["c", None, None]]
    assert content["sections"][1]["parts"][0]["values"] == {"loss": {"epoch": [0, 1, 2], "loss": [1, 0.5, 0.25]}}
    assert content["facts"] == {"device": "CPU", "seconds": 1.5}


def test_writing_again_replaces_everything(report, tmp_path):
    write_report(report, tmp_path / "report.html")
    first = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_report(report, tmp_path / "report.html")
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    write_report(Report("Empty", []), tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_cells_show_text_and_keep_values(tmp_path):
    table = Table(["method", "DSC"], [["a", Cell("0.71 ± 0.02", {"mean": 0.7123, "sd": math.nan}, bold=True)]])
    write_report(Report("Cells", [Section("One", [table])]), tmp_path / "report.html")
    assert '<td class="best">0.71 ± 0.02</td>' in (tmp_path / "report.html").read_text()
    assert "| a | **0.71 ± 0.02** |" in (tmp_path / "report.md").read_text()
    part = json.loads((tmp_path / "report.json").read_text())["sections"][0]["parts"][0]
    assert part["rows"] == [["a", {"mean": 0.7123, "sd": None}]]


def test_a_gallery_has_a_title(tmp_path):
    gallery = Gallery([Picture.from_array(np.zeros((4, 4), np.uint8), "left")], "below", "Worst <case>")
    write_report(Report("Gallery", [Section("One", [gallery])]), tmp_path / "report.html")
    assert "<h3>Worst &lt;case&gt;</h3>" in (tmp_path / "report.html").read_text()
    text = (tmp_path / "report.md").read_text()
    assert text.index("### Worst <case>") < text.index("![left]") < text.index("\nbelow")
    assert json.loads((tmp_path / "report.json").read_text())["sections"][0]["parts"][0]["title"] == "Worst <case>"


@pytest.fixture
def wide_report(report):
    """What a study brings at its widest: long names, many columns, many and large pictures, long lines of code."""
    name = "SASTTrainer, teacher SACPSTrainer, style source pool_positive"
    columns = ["method", *(f"measure {number}" for number in range(12))]
    rows = [[name, *[Cell("0.712 [0.688, 0.734]", 0.712)] * 12] for _ in range(3)]
    pictures = [Picture.from_array(np.full((512, 512), 128, np.uint8), f"{name}: DSC 0.712") for _ in range(5)]
    wide = Section("Wide", [Table(columns, rows, "caption " * 60), Gallery(pictures, "below", name),
                            Text("word " * 400), Text("nnUNetv2_train " * 60, is_code=True)])
    return Report(report.title, [*report.sections, wide], {"command": "nnUNetv2_train 501 2d 0 -tr X " * 20,
                                                           "path": "/data" * 80, **report.facts})


def test_in_a_browser(wide_report, tmp_path):
    write_report(wide_report, tmp_path / "report.html")
    with chromium(tmp_path / "profile", width=1280) as browser:
        browser.open(tmp_path / "report.html")
        assert browser.problems == []
        page, *others = browser.requests
        assert page.startswith("file://") and others and all(url.startswith("data:image/") for url in others)
        shown = browser.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        assert shown == [True] * 8
        assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
        assert browser.evaluate("[...document.querySelectorAll('p, td, figcaption')].every("
                                "part => parseFloat(getComputedStyle(part).fontSize) >= 14)")


def test_the_browser_notices_problems(tmp_path):
    """So that the test above can fail."""
    (tmp_path / "page.html").write_text(
        '<html><body style="width: 3000px"><img src="missing.png"><script>console.error("!"); undefined.x</script>')
    with chromium(tmp_path / "profile") as browser:
        browser.open(tmp_path / "page.html")
        assert len(browser.problems) >= 2 and any(url.endswith("missing.png") for url in browser.requests)
        assert browser.evaluate("document.documentElement.scrollWidth") >= 3000
