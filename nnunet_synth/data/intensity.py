"""The range of intensities that images have after nnU-Net's normalisation (synthesizers.md §10.3)."""

from __future__ import annotations

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_synth.data.experiment import Experiment

PERCENTILES = (0.05, 99.95)     # of measured channels: robust against single hot pixels
MAX_CASES = 50                  # measured at most, evenly spread over the training cases


def intensity_range(experiment: Experiment) -> list[list[float]]:
    """Per channel [lo, hi] in the network's intensity space.

    Exact for CT (nnU-Net clips at the 0.5 and 99.5 percentiles of the foreground before it standardises) and for
    schemes that rescale to [0, 1]; otherwise measured on this fold's labelled training cases, inside nnU-Net's
    non-zero mask.
    """
    schemes = experiment.configuration_manager.normalization_schemes
    measured = None
    ranges = []
    for channel, scheme in enumerate(schemes):
        if scheme == "CTNormalization":
            properties = experiment.plans_manager.foreground_intensity_properties_per_channel[str(channel)]
            spread = max(properties["std"], 1e-8)       # as nnU-Net divides
            ranges.append([float((properties[bound] - properties["mean"]) / spread)
                           for bound in ("percentile_00_5", "percentile_99_5")])
        elif scheme in ("RescaleTo01Normalization", "RGBTo01Normalization"):
            ranges.append([0.0, 1.0])
        else:
            measured = measured or _measure(experiment)
            ranges.append(measured[channel])
    return ranges


def _measure(experiment: Experiment) -> list[list[float]]:
    cases = infer_dataset_class(str(experiment.data_folder))(str(experiment.data_folder), experiment.train_ids)
    chosen = np.linspace(0, len(cases.identifiers) - 1, min(MAX_CASES, len(cases.identifiers))).round().astype(int)
    bounds = []
    for index in chosen:
        image, segmentation, _, _ = cases.load_case(cases.identifiers[index])
        inside = segmentation[:][0] >= 0
        bounds.append([np.percentile(channel[inside], PERCENTILES) for channel in image[:]])
    lowest, highest = np.min(bounds, axis=0)[:, 0], np.max(bounds, axis=0)[:, 1]
    return [[float(low), float(max(high, low + 1e-3))] for low, high in zip(lowest, highest, strict=True)]
