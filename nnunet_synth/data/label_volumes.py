"""Whole label volumes of preprocessed cases, to draw whole synthetic volumes for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.slices import CaseSlices, to_slices
from nnunet_synth.synthesizers.base import SynthRequest


@dataclass(frozen=True)
class LabelVolume:
    """One case.

    Attributes:
        image: [1, C, D, H, W] float32 network intensities, or None where nobody may look at the scan.
        label, layout, cluster: [1, D, H, W] int64.
        valid: [1, D, H, W] bool.
        slice_spacing: mm between slices.
    """

    case_id: str
    image: Tensor | None
    label: Tensor
    layout: Tensor
    cluster: Tensor
    valid: Tensor
    slice_spacing: float

    def request(self, device: torch.device, generator: torch.Generator) -> SynthRequest:
        image = None if self.image is None else self.image.to(device)
        return SynthRequest(label=self.label.to(device), image=image, layout=self.layout.to(device),
                            cluster=self.cluster.to(device), valid=self.valid.to(device), generator=generator)


def read_label_volumes(experiment: Experiment, case_ids: Sequence[str], with_scans: bool = True
                       ) -> Iterator[LabelVolume]:
    """The labelled cases one after another, every slice of each."""
    cases = CaseSlices(experiment.data_folder, case_ids, experiment.layouts_folder,
                       experiment.label_manager.ignore_label, cache_bytes=0)
    for case_id in case_ids:
        origins = [(case_id, number) for number in range(cases.open(case_id)[1].shape[1])]
        part = to_slices([cases.read(origin) for origin in origins], origins)
        image = part.image.transpose(0, 1)[None] if with_scans else None
        yield LabelVolume(case_id, image, part.label[None], part.layout[None], part.cluster[None], part.valid[None],
                          slice_spacing_of(experiment, cases, case_id))


def slice_spacing_of(experiment: Experiment, cases: CaseSlices, case_id: str) -> float:
    """mm between the slices of a preprocessed case: 2D configurations leave it as it was scanned."""
    planned = list(experiment.configuration_manager.spacing)
    if len(planned) == 3:
        return float(planned[0])
    first_axis = experiment.plans_manager.transpose_forward[0]
    return float(np.asarray(cases.properties(case_id)["spacing"])[first_axis])
