"""The parser of the command line: verbs → modules of `commands/`, each imported when it is its turn."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from nnunet_synth import __version__

VERBS = {       # verb → what the list of verbs says about it
    "convert": "turn a public dataset into a raw nnU-Net dataset with unlabelled cases",
    "layouts": "find left and right lung of every case",
    "split": "hide labels of training cases: one more fold for each label ratio",
    "configure": "name a set of hyper-parameters as a configuration of the plans",
    "preprocess": "preprocess the unlabelled pool and the layouts of a planned dataset",
    "pretrain": "train a synthesizer on the labelled training cases of a fold",
    "sample": "draw images with a trained synthesizer, to look at or as a dataset",
    "edit": "add, change or remove lesions in a scan by shape and mean intensity",
    "quality": "compare synthetic images with real ones: FID, MM-FID, MM-STD, sharpness, noise, lesions",
    "select": "rank the checkpoints of synthesizers, and train the filter of synthetic images",
    "evaluate": "compare predictions with the truth: DSC, NSD, HD95, precision, recall, lesion-wise F1",
    "study": "compare methods over seeds, folds and label ratios, with statistics and a report",
    "demo": "the whole job on a procedural chest CT, with a report",
    "doctor": "check the installation and say how to mend it",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="nnunet_synth", description="Train nnU-Net with the scans nobody labelled.")
    parser.add_argument("--version", action="version", version=f"nnunet_synth {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_VerbParser)
    for verb, said in VERBS.items():
        subparsers.add_parser(verb, help=said, formatter_class=argparse.RawDescriptionHelpFormatter).verb = verb
    return parser


class _VerbParser(argparse.ArgumentParser):
    """Asks the module of its verb for description and arguments when it is that verb's turn: the others shall neither
    be waited for nor fail."""

    verb: str | None = None     # until its module was asked; None for the parsers of a verb's own sub-verbs

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        if self.verb is not None:
            module = importlib.import_module(f"nnunet_synth.commands.{self.verb}")
            self.verb = None
            self.description, self.epilog = module.__doc__, f"example:\n  {module.EXAMPLE}"
            self.set_defaults(run=module.run)
            module.add_arguments(self)
        return super().parse_known_args(*args, **kwargs)
