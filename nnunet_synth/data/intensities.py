"""From nnU-Net's normalised intensities to a synthesizer's range, and back to the intensities of the raw images."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnunet_synth.data.experiment import Experiment
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import SliceSource

MEASURED_PERCENTILES = (0.05, 99.95)
MAX_MEASURED_SLICES = 256

# Normalisations whose result a fixed scale and offset take back; the others depend on each image.
_UNIT_RANGE = ("RescaleTo01Normalization", "RGBTo01Normalization")


def intensity_range(experiment: Experiment, slices: SliceSource) -> list[list[float]]:
    """[lo, hi] of each channel in the network's intensity space (synthesizers.md §10.3).

    CT: exact, from the percentiles to which nnU-Net clips. Rescaled and RGB images: 0 and 1. All others (z-score, none)
    are measured: the 0.05 and 99.95 percentiles of the valid pixels of labelled training slices.

    Raises:
        UserError: a measured channel is constant.
    """
    schemes = experiment.configuration_manager.normalization_schemes
    measured = None
    ranges = []
    for channel, scheme in enumerate(schemes):
        if scheme == "CTNormalization":
            facts = _intensities(experiment, channel)
            std = max(facts["std"], 1e-8)
            bounds = [(facts[key] - facts["mean"]) / std for key in ("percentile_00_5", "percentile_99_5")]
        elif scheme in _UNIT_RANGE:
            bounds = [0.0, 1.0]
        else:
            measured = _measured_range(slices) if measured is None else measured
            bounds = measured[channel].tolist()
        if not bounds[0] < bounds[1]:
            raise UserError(f"channel {channel} ({experiment.channel_names[channel]}) has the same intensity "
                            f"everywhere ({bounds[0]:.4g}) in the labelled training images: nothing to synthesize")
        ranges.append([float(bound) for bound in bounds])
    return ranges


def to_raw_intensities(experiment: Experiment, image: np.ndarray, bounds: list[list[float]],
                       eight_bit: bool = False) -> tuple[np.ndarray, list[str]]:
    """Take back nnU-Net's normalisation.

    Args:
        image: [C, …] float, network intensities.
        bounds: [lo, hi] of each channel, see `intensity_range`.
        eight_bit: whether the result is for files that hold whole numbers from 0 to 255.

    Returns:
        [C, …] float32 and, for each channel, a phrase that says what its numbers mean. CT is in Hounsfield units again;
        images scaled to 0…1 become 0…255. A z-score has no inverse, as each image had its own mean and deviation: it
        stays, or is stretched from [lo, hi] to 0…255, which the next z-score takes back.
    """
    raw, meanings = np.array(image, dtype=np.float32), []
    for channel, scheme in enumerate(experiment.configuration_manager.normalization_schemes):
        low, high = bounds[channel]
        if scheme == "CTNormalization":
            facts = _intensities(experiment, channel)
            raw[channel] = raw[channel] * max(facts["std"], 1e-8) + facts["mean"]
            meanings.append("the unit of the raw images (CT: Hounsfield units)")
        elif scheme in _UNIT_RANGE:
            raw[channel] = np.clip(raw[channel], 0, 1) * 255
            meanings.append("0 to 255 stands for the 0 to 1 to which the raw images were scaled")
        elif scheme == "NoNormalization":
            meanings.append("the unit of the raw images")
        elif eight_bit:
            raw[channel] = np.clip((raw[channel] - low) / (high - low), 0, 1) * 255
            meanings.append(f"{scheme}: 0 to 255 stands for {low:.4g} to {high:.4g}; the raw scale is not recoverable")
        else:
            meanings.append(f"{scheme}: as normalised; the raw scale is not recoverable")
    return raw, meanings


def intensity_outside(experiment: Experiment, bounds: list[list[float]]) -> np.ndarray:
    """[C] network intensities for where nothing was scanned: the lowest one (air in CT), 0 for z-scores, which
    nnU-Net leaves at 0 there."""
    schemes = experiment.configuration_manager.normalization_schemes
    return np.array([0.0 if scheme.startswith("ZScore") else low
                     for scheme, (low, _) in zip(schemes, bounds, strict=True)], dtype=np.float32)


def _intensities(experiment: Experiment, channel: int) -> dict[str, Any]:
    return experiment.plans_manager.foreground_intensity_properties_per_channel[str(channel)]


def _measured_range(slices: SliceSource) -> np.ndarray:
    """[C, 2] percentiles over valid pixels."""
    values = [part.image[0][:, part.valid[0]].numpy() for part in slices.iterate(False, MAX_MEASURED_SLICES)]
    return np.percentile(np.concatenate(values, axis=1), MEASURED_PERCENTILES, axis=1).T
