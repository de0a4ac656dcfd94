"""What a converter is: a module of this package that knows one public dataset, and the list of them.

A module has

    HELP                one line for `nnunet_synth convert --help`
    EXAMPLE             a command that works
    __doc__             where the data is to be had, licence, citation, size, and the exact tree that is expected: this
                        is what `nnunet_synth convert NAME --help` shows
    Options             a frozen dataclass; `task` is one of its fields where there is more than one; `__post_init__`
                        raises UserError for values that it does not know
    add_arguments       adds the options to a parser, `dest` = name of the field
    describe(options)   → DatasetDescription
    find_cases(source, options)         → iterator of Case, then of PassedOver for files that it knows to belong to no
                        case; raises UserError where `source` is not this dataset
    make_splits(cases, options)         → folds for splits_final.json out of what was written, or [] for nnU-Net's own

and knows nothing of the command line, of nnU-Net's folders or of how files are written.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nnunet_synth.dataset_conversion.case import Case, DatasetDescription, PassedOver

if TYPE_CHECKING:
    from nnunet_synth.dataset_conversion.writer import CaseReport

CONVERTERS = {
    "covid-semiseg": "covid_semiseg",
    "covid19-ct-seg": "covid19_ct_seg",
    "covid-19-20": "covid_19_20",
    "mosmed": "mosmed",
    "nccid": "nccid",
    "folder": "folder",
}


class Converter(Protocol):
    """A module of this package, as above."""

    HELP: str
    EXAMPLE: str
    Options: type

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def describe(self, options: Any) -> DatasetDescription: ...

    def find_cases(self, source: Path, options: Any) -> Iterator[Case | PassedOver]: ...

    def make_splits(self, cases: Sequence[CaseReport], options: Any) -> list[dict[str, Any]]: ...


def load_converter(name: str) -> Converter:
    """The module of a name in `CONVERTERS`."""
    return importlib.import_module(f"nnunet_synth.dataset_conversion.{CONVERTERS[name]}")
