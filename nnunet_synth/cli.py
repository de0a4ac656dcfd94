"""`nnunet_synth VERB …`: verbs → functions, nothing else."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nnunet_synth import __version__
from nnunet_synth.errors import UserError
from nnunet_synth.process_counts import check_environment

VERBS = ("convert", "layouts", "split", "configure", "preprocess", "pretrain", "sample", "edit", "quality", "select",
         "evaluate", "study", "demo", "doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, or 2 with one clear line on stderr when the user can mend it."""
    args = build_parser().parse_args(arguments)
    try:
        if args.verb != "doctor":       # which says it among all else
            check_environment()
        args.run(args)
    except UserError as error:
        print(f"nnunet_synth {args.verb}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:     # … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or Python complains when it flushes
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        reason = f"{error.strerror}{', the limit is that of ulimit -f' if error.errno == errno.EFBIG else ''}"
        print(f"nnunet_synth {args.verb}: error: {reason}: {error.filename or 'while writing'}; "
              "nothing incomplete was left behind, run the same command again when that is mended", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nnunet_synth {args.verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; verbs of `commands/` add their own arguments."""
    parser = argparse.ArgumentParser(prog="nnunet_synth", description="Train nnU-Net with the scans nobody labelled.")
    parser.add_argument("--version", action="version", version=f"nnunet_synth {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_VerbParser)
    for verb in VERBS:
        module = importlib.import_module(f"nnunet_synth.commands.{verb}")
        subparser = subparsers.add_parser(verb, help=module.HELP, description=module.__doc__,
                                          epilog=f"example:\n  {module.EXAMPLE}",
                                          formatter_class=argparse.RawDescriptionHelpFormatter)
        subparser.add_arguments = module.add_arguments
        subparser.set_defaults(run=module.run)
    return parser


class _VerbParser(argparse.ArgumentParser):
    """Asks its verb for the arguments only when it is that verb's turn: those of `convert` come out of the converters,
    which import NumPy, and the other verbs shall start without."""

    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        if self.add_arguments is not None:
            add_arguments, self.add_arguments = self.add_arguments, None
            add_arguments(self)
        return super().parse_known_args(*args, **kwargs)
