"""Masks from noise: a StyleGAN that learns unsupervised masks (V2UM) or label maps (V2M), to draw images from.

G₁ of UM2I (Xing et al., *Less is More*, III.B.1). They have no pseudo-label input, so they are no synthesizers: they
serve `nnunet_synth sample … --from noise`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import torch

    from nnunet_synth.mask_sources.source import MaskSource

MASK_SOURCES = {"v2um": ("unsupervised", "V2UM"), "v2m": ("labels", "V2M")}


def find_mask_source(name: str) -> type[MaskSource]:
    """The class of a mask source. Raises UserError when the name is unknown."""
    if name not in MASK_SOURCES:
        raise UserError(f"unknown mask source {name!r}; known: {', '.join(MASK_SOURCES)}")
    module, class_name = MASK_SOURCES[name]
    return getattr(import_module(f"{__name__}.{module}"), class_name)


def load_mask_source(folder: str | Path, device: torch.device | str = "cpu") -> MaskSource:
    """A trained mask source in eval mode, its parameters frozen. Raises UserError, see `load_synthesizer`."""
    from nnunet_synth.synthesizers.checkpoint import load_trained
    return load_trained(folder, find_mask_source, device)
