"""docs/datasets.md, `--help` and the options say the same."""

import argparse
import re
from pathlib import Path

import pytest

from nnunet_synth.dataset_conversion.converter import CONVERTERS, load_converter

DOCS = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"


def section(name: str) -> str:
    """What docs/datasets.md says of a converter, on one line."""
    parts = re.split(r"^## ", DOCS.read_text(), flags=re.MULTILINE)
    found, = (part for part in parts if part.partition("\n")[0] == name)
    return " ".join(found.split())


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_option_and_the_example_are_documented(name):
    converter, told = load_converter(name), section(name)
    assert converter.EXAMPLE in told
    parser = argparse.ArgumentParser(add_help=False)
    converter.add_arguments(parser)
    for action in parser._actions:
        assert action.option_strings[-1] in told, action.option_strings
        for choice in action.choices or ():
            assert str(choice) in told, (action.option_strings, choice)


@pytest.mark.parametrize("name", CONVERTERS)
def test_help_says_where_the_data_is_and_what_is_expected(name):
    text = load_converter(name).__doc__
    if name != "folder":
        for word in ("Where: ", "Licence: ", "Cite: "):
            assert f"\n{word}" in text, word
        assert re.search(r"https://\S+", text)
    assert "SOURCE" in text and "\n    " in text                # a tree, indented
