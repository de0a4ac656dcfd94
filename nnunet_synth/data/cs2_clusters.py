"""CS2's clusters of whole cases, found offline and written beside the raw images (`clustersTr`, `clustersUl`)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from nnunet_synth.data.cluster_network import ClusterSettings, find_clusters
from nnunet_synth.data.find_layouts import LayoutReport, read_dataset_json, write_maps
from nnunet_synth.data.superpixel_layouts import find_in_slices


def write_cs2_clusters(raw_folder: Path, settings: ClusterSettings, device: torch.device, num_jobs: int = 1,
                       overwrite: bool = False) -> list[LayoutReport]:
    """Write the clusters of every labelled and unlabelled case of a raw dataset.

    Args:
        device: on which each slice's network is trained.

    Raises:
        UserError: see `find_layouts.write_maps`.
    """
    find = partial(clusters_of_slice, settings=settings, device=device)
    finder = partial(find_in_slices, dataset_json=read_dataset_json(raw_folder), find=find)
    description = {"method": "cs2", **asdict(settings)}
    return write_maps(raw_folder, finder, {}, description, "cluster", num_jobs=num_jobs, overwrite=overwrite)


def clusters_of_slice(image: np.ndarray, settings: ClusterSettings, device: torch.device) -> np.ndarray:
    """[C, H, W] in [0, 1] → [H, W] uint8, numbered from 1, darkest first."""
    return find_clusters(torch.from_numpy(image).to(device), settings).to(torch.uint8).cpu().numpy()
