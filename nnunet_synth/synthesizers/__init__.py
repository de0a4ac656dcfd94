"""GAN synthesizers: plain PyTorch, found by name through the entry points `nnunet_synth.synthesizers`."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunet_synth.synthesizers.base import Synthesizer

ENTRY_POINT_GROUP = "nnunet_synth.synthesizers"


def find_synthesizer(name: str) -> type[Synthesizer]:
    """The synthesizer registered under `name`; imported only now, because some are heavy.

    Raises:
        UserError: the name is unknown, or two packages register it.
    """
    registered = entry_points(group=ENTRY_POINT_GROUP)
    matches = [point for point in registered if point.name == name]
    if not matches:
        known = ", ".join(sorted({point.name for point in registered})) or "none: is nnunet_synth installed?"
        raise UserError(f"unknown synthesizer {name!r}; known: {known}")
    if len({point.value for point in matches}) > 1:
        raise UserError(f"synthesizer {name!r} is registered twice: {', '.join(point.value for point in matches)}")
    return matches[0].load()
