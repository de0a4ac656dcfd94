"""The report: self-contained HTML, Markdown and JSON that say the same."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunet_synth.evaluation.report import Gallery, Picture, Report, Section, Table, Text, curves, write_report


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
