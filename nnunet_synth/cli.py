"""`nnunet_synth VERB …`: runs one verb, and says in one line how it ended.

What takes time to import is imported inside, so that Ctrl-C is answered from the beginning.
"""

import errno
import os
import sys

from nnunet_synth.errors import UserError

MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
            errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP)


def main(arguments: "list[str] | None" = None) -> int:
    """Run one verb; returns the exit status: 0, or 2 with one clear line on stderr when the user can mend it."""
    is_command = arguments is None      # and not a call from Python
    arguments = sys.argv[1:] if is_command else arguments
    name = " ".join(["nnunet_synth", *arguments[:1]])
    try:
        from nnunet_synth.console import make_printable
        from nnunet_synth.ctrl_c import keyboard_interrupt_wins
        from nnunet_synth.environment import check_environment
        from nnunet_synth.verbs import build_parser
        make_printable()
        with keyboard_interrupt_wins():
            args = build_parser().parse_args(arguments)
            if args.verb != "doctor":       # which tells of all that is wrong
                check_environment()
            args.run(args)
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:     # … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or Python complains when it flushes
        return 141
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        reason = f"{error.strerror}{', the limit is that of ulimit -f' if error.errno == errno.EFBIG else ''}"
        print(f"{name}: error: {reason}: {error.filename or 'while writing'}; nothing incomplete was left behind, run "
              "the same command again when that is mended", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from nnunet_synth.memory import out_of_memory
        message = out_of_memory(error, " ".join(arguments[:1]))
        if message is None:
            raise
        print(f"{name}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if is_command:
            import signal
            signal.signal(signal.SIGINT, signal.SIG_IGN)        # the second one, while Python ends
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0
