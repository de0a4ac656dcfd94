"""What we print, on a console that cannot show all of it: a log in ASCII, a pipe in cp1252, a name that is no text.

Nothing that is printed may end a run.
"""

from __future__ import annotations

import codecs
import locale
import sys
import unicodedata

TRANSLITERATE = "nnunet_synth.transliterate"        # the name under which codecs know the error handler
STRICT = ("strict", "surrogateescape", "backslashreplace")      # "ignore" and the like were somebody's choice

SIGNS = {"→": "->", "←": "<-", "↔": "<->", "↑": "up", "↓": "down", "−": "-", "–": "-", "×": "x", "·": "*", "°": " deg",
         "±": "+-", "½": "1/2", "≤": "<=", "≥": ">=", "≠": "!=", "∈": "in", "√": "sqrt", "‖": "||", "′": "'",
         "¹": "^1", "²": "^2", "³": "^3", "⁵": "^5", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta",
         "ε": "epsilon", "η": "eta", "θ": "theta", "λ": "lambda", "μ": "mu", "µ": "u", "σ": "sigma", "τ": "tau",
         "φ": "phi", "ψ": "psi", "ω": "omega", "Σ": "sum", "∇": "grad "}


def make_printable() -> None:
    """From now on stdout and stderr replace what their encoding lacks (→ by ->) instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in STRICT and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=TRANSLITERATE)


def printable(text: object) -> str:
    """What of a text can be written to a file that was opened without naming an encoding."""
    encoding = locale.getpreferredencoding(False)
    return str(text).encode(encoding, TRANSLITERATE).decode(encoding)


def _transliterate(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start:error.end])), error.end


def _ascii(character: str) -> str:
    """A sign of ours as one types it; of anything else, as of a file's name, the code, so that it can be told."""
    text = SIGNS.get(character) or unicodedata.normalize("NFKC", character)
    return text if text.isascii() else character.encode("ascii", "backslashreplace").decode()


codecs.register_error(TRANSLITERATE, _transliterate)
