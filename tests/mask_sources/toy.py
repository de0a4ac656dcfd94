"""Mask sources of a few thousand weights, and the slices to train them on."""

from dataclasses import asdict

import torch

from nnunet_synth.mask_sources import find_mask_source
from nnunet_synth.synthesizers.options import make_config
from tests.synthesizers.toy import ToySlices, toy_meta

SMALL = {"latent_size": 8, "num_mapping_layers": 2, "max_width": 8, "base_width": 128, "steps_per_depth": (4, 6, 6),
         "batch_sizes": (4,)}


class Discs(ToySlices):
    """Discs in a lung; the unlabelled slices are others, without labels."""

    def __init__(self, size=16, has_unlabelled=False, seed=0):
        super().__init__(size=size, seed=seed)
        self.size, self.has_unlabelled = size, has_unlabelled

    def unlabelled(self):
        if not self.has_unlabelled:
            return None
        other = Discs(self.size, seed=1)
        other.slices = [(image, 0 * label, layout) for image, label, layout in other.slices]
        return other


def build(name, patch_size=(16, 16), seed=0, **options):
    mask_source_class = find_mask_source(name)
    config = make_config(mask_source_class, "tiny", {**SMALL, **options})
    meta = toy_meta(synthesizer=name, config=asdict(config), patch_size=list(patch_size))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mask_source_class.build(meta, config)
