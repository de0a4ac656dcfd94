"""Two streams in one loader: labelled and unlabelled samples, equal batches, with their layouts.

One composite loader instead of two keeps the ratio of the streams constant and takes its processes from nnU-Net's own
`nnUNet_n_proc_DA` budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from scipy.ndimage import label

from nnunet_synth.data.background import BackgroundLoader
from nnunet_synth.data.device_augmentation import DeviceAugmentation
from nnunet_synth.data.device_augmentation_spatial import OUTSIDE
from nnunet_synth.data.layouts import CLUSTER_FACTOR, open_layout, open_map

NUM_EXTRA_CHANNELS = 3      # layout, cluster, valid
HOLE = -2                   # in a segmentation that is still to be augmented: nnU-Net's -1 amid the scan


# ----------------------------------------------------------------------------------------------------------------------
# Cases


class CasesWithLayout:
    """Cases of an nnU-Net dataset whose layout maps travel in the slot for previous-stage segmentations."""

    def __init__(self, dataset: nnUNetBaseDataset, layouts_folder: Path) -> None:
        self.dataset = dataset
        self.layouts_folder = layouts_folder
        self.identifiers = list(dataset.identifiers)

    def load_case(self, case_id: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image [C, z, y, x], segmentation [1, z, y, x], layout map [z, y, x], properties; lazily read."""
        image, segmentation, _, properties = self.dataset.load_case(case_id)
        return image, segmentation, open_layout(self.layouts_folder, case_id, image.shape[1:]), properties


class UnlabelledCases:
    """The unlabelled stream: the pool, and labelled-dataset cases whose labels this fold hides.

    Segmentations are reduced to where the image is valid (-1 outside, 0 inside), and `class_locations` to voxels inside
    the layout, so that no label can reach the loader; a teacher's pseudo-labels may take their place.

    Args:
        sources: datasets with disjoint ids.
        inside_layout: draw around voxels of the layout where a case has one; otherwise uniformly.
        pseudo_labels_folder: holds the pseudo-labels of every case (`data/pseudo_labels.py`).
    """

    def __init__(self, sources: Sequence[nnUNetBaseDataset], layouts_folder: Path, inside_layout: bool,
                 pseudo_labels_folder: Path | None = None) -> None:
        self.layouts_folder = layouts_folder
        self.inside_layout = inside_layout
        self.pseudo_labels_folder = pseudo_labels_folder
        self.source_of = {case_id: CasesWithLayout(source, layouts_folder)
                          for source in sources for case_id in source.identifiers}
        self.identifiers = list(self.source_of)

    def load_case(self, case_id: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        image, segmentation, layout, properties = self.source_of[case_id].load_case(case_id)
        properties = {**properties, "class_locations": self._locations(case_id)}
        if self.pseudo_labels_folder is None:
            return image, HiddenSegmentation(segmentation), layout, properties
        return image, open_map(self.pseudo_labels_folder / f"{case_id}.b2nd"), layout, properties

    def stored_files(self, case_id: str) -> list[Path]:
        """The voxels and the properties of a preprocessed case; nnU-Net's formats differ in their ending."""
        folder = Path(self.source_of[case_id].dataset.source_folder)
        files = (folder / f"{case_id}{ending}" for ending in (".b2nd", ".npz", ".pkl"))
        return [file for file in files if file.exists()]

    def num_slices(self) -> int:
        """How many slices along the first axis one pass over the stream holds."""
        total = 0
        for case_id in self.identifiers:
            locations = self._locations(case_id)
            if locations:
                total += len(np.unique(locations[1][:, 1]))
            else:
                total += self.source_of[case_id].load_case(case_id)[0].shape[1]
        return total

    def _locations(self, case_id: str) -> dict[int, np.ndarray]:
        path = Path(self.layouts_folder) / f"{case_id}_locations.npy"
        if not self.inside_layout or not path.exists():
            return {}
        locations = np.load(path, allow_pickle=False)
        return {1: locations} if len(locations) else {}


def masked_dataset_class(stock: type[nnUNetBaseDataset], layouts_folder: Path,
                         lowest: Sequence[float]) -> type[nnUNetBaseDataset]:
    """`stock`, with everything outside the layout at the lowest intensity of its channel: for the final validation."""

    class MaskedCases(stock):
        def load_case(self, case_id: str) -> tuple[Any, Any, Any, dict[str, Any]]:
            image, segmentation, previous, properties = super().load_case(case_id)
            inside = open_layout(layouts_folder, case_id, image.shape[1:])[:] % CLUSTER_FACTOR > 0
            outside = np.asarray(lowest, dtype=np.float32).reshape(-1, 1, 1, 1)
            return np.where(inside, image[:], outside), segmentation, previous, properties

    return MaskedCases


class HiddenSegmentation:
    """A segmentation without its labels: -1 where it is -1, else 0. Lazy: only what is cropped is read."""

    def __init__(self, segmentation: Any) -> None:
        self._segmentation = segmentation
        self.shape = segmentation.shape
        self.ndim = len(segmentation.shape)
        self.dtype = segmentation.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.minimum(self._segmentation[key], 0)


# ----------------------------------------------------------------------------------------------------------------------
# Transforms


class LayoutToChannels(BasicTransform):
    """Turn the layout map (segmentation channel 1) into three data channels: layout, cluster, valid.

    Runs after all spatial and intensity transforms and just before nnU-Net forgets, by RemoveLabelTransform(-1, 0),
    where the image was padded.
    """

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        segmentation = data_dict["segmentation"]
        layout_map = segmentation[1].clamp(min=0)       # padding is -1
        valid = fill_holes(segmentation[0] != -1)
        channels = torch.stack([layout_map % CLUSTER_FACTOR, layout_map // CLUSTER_FACTOR, valid])
        data_dict["image"] = torch.cat([data_dict["image"], channels.to(data_dict["image"].dtype)])
        data_dict["segmentation"] = segmentation[:1]
        return data_dict


class MarkHoles(BasicTransform):
    """Tell -1 amid the scan from -1 around it: all that is left to the workers where the device augments.

    Holes are found in the enlarged patch, so that one at the border of the later patch is found too.
    """

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        segmentation = data_dict["segmentation"][0]
        outside = segmentation == OUTSIDE
        segmentation[outside & fill_holes(~outside)] = HOLE
        return data_dict


def fill_holes(valid: torch.Tensor) -> torch.Tensor:
    """bool [H, W] or [D, H, W] with the holes of each slice filled.

    In single pictures, and in the end slices of volumes, nnU-Net marks every pixel of raw value 0 as outside, also
    those amid the lung: its own filling of holes works in 3D, where they have a way out.
    """
    if valid.all():
        return valid
    slices = valid.numpy().reshape(-1, *valid.shape[-2:])
    parts, num_parts = label(~slices, structure=WITHIN_SLICES)
    is_hole = np.ones(num_parts + 1, dtype=bool)
    for border in (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]):
        is_hole[border] = False
    is_hole[0] = True       # not invalid in the first place
    return torch.from_numpy(is_hole[parts]).reshape(valid.shape)


# Neighbours of a voxel, for components of slices that do not know of each other.
WITHIN_SLICES = np.stack([np.zeros((3, 3), bool), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3), bool)])


def with_layout_channels(transforms: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's transforms, with `LayoutToChannels` before RemoveLabelTransform(-1, 0)."""
    position = next(index for index, transform in enumerate(transforms.transforms)
                    if isinstance(transform, RemoveLabelTransform) and transform.label_value == -1)
    return ComposeTransforms([*transforms.transforms[:position], LayoutToChannels(), *transforms.transforms[position:]])


def without_benchmarks(transforms: ComposeTransforms) -> ComposeTransforms:
    """The same transforms, none of which chooses its algorithm by the clock.

    nnU-Net's blur times two implementations and takes the faster one; they differ in the last bits, so a run in a
    single process could not be repeated.
    """
    for transform in transforms.transforms:
        inner = getattr(transform, "transform", transform)      # RandomTransform wraps
        if hasattr(inner, "benchmark"):
            inner.benchmark = False
    return transforms


# ----------------------------------------------------------------------------------------------------------------------
# Loaders


class UnlabelledLoader(nnUNetDataLoader):
    """Draws patches around layout voxels where a case has them, else uniformly; never around a label."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, oversample_foreground_percent=0.0, **kwargs)
        self.has_ignore = False     # unlabelled cases have no ignored areas, nor the table that nnU-Net looks up then

    @property
    def is_pseudo_labelled(self) -> bool:
        return self._data.pseudo_labels_folder is not None

    def get_bbox(self, data_shape: np.ndarray, force_fg: bool, class_locations: dict[int, np.ndarray],
                 *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        return super().get_bbox(data_shape, bool(class_locations), class_locations, *args, **kwargs)


class TwoStreamLoader:
    """{"data", "target", "keys"} of the labelled stream and {"data_u", "keys_u"} of the unlabelled one in one batch.

    data: [B, C + 3, …] float32; the last three channels are layout, cluster and valid (`split_channels`).
    target_u: [B, 1, …] int16 pseudo-labels, if the unlabelled cases have any.

    Args:
        augmented_later: both streams are enlarged patches for `AugmentedOnDevice`, which also needs where the
            unlabelled scan ends and its layout map.
    """

    def __init__(self, labelled: nnUNetDataLoader, unlabelled: nnUNetDataLoader, augmented_later: bool = False) -> None:
        self.labelled = labelled
        self.unlabelled = unlabelled
        self.with_target_u = augmented_later or unlabelled.is_pseudo_labelled

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        batch, batch_u = next(self.labelled), next(self.unlabelled)
        batch = {**batch, "data_u": batch_u["data"], "keys_u": batch_u["keys"]}
        return {**batch, "target_u": batch_u["target"]} if self.with_target_u else batch

    def set_thread_id(self, thread_id: int) -> None:
        self.labelled.set_thread_id(thread_id)
        self.unlabelled.set_thread_id(thread_id)


class AugmentedOnDevice:
    """A loader of enlarged patches, `MarkHoles` their only transform, whose batches are augmented on the device: what
    comes out is what a loader with nnU-Net's transforms gives, already where the training is.

    Args:
        streams: the augmentation of each stream, by the ending of its keys: "" and "_u".
        generator: of all its draws, on the CPU.
    """

    def __init__(self, loader: Iterator[dict[str, Any]], streams: Mapping[str, DeviceAugmentation],
                 device: torch.device, generator: torch.Generator) -> None:
        self.loader = loader
        self.streams = streams
        self.device = device
        self.generator = generator

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next(self.loader)
        for ending, augment in self.streams.items():
            image, labels = (batch.pop(f"{name}{ending}").to(self.device, non_blocking=True)
                             for name in ("data", "target"))
            batch[f"data{ending}"], target = augment(image, labels, self.generator)
            if target is not None:
                batch[f"target{ending}"] = target
        return batch


def split_channels(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, C + 3, …] → image [B, C, …] float32, layout [B, …] int64, cluster [B, …] int64, valid [B, …] bool."""
    image, (layout, cluster, valid) = data[:, :-NUM_EXTRA_CHANNELS], data[:, -NUM_EXTRA_CHANNELS:].unbind(1)
    return image, layout.long(), cluster.long(), valid > 0.5


def stop(loader: SingleThreadedAugmenter | NonDetMultiThreadedAugmenter | AugmentedOnDevice | None) -> None:
    """End the processes of a loader that `in_background` started, if it has any."""
    if isinstance(loader, AugmentedOnDevice):
        loader = loader.loader
    if isinstance(loader, NonDetMultiThreadedAugmenter):
        loader._finish()


def in_background(loader: Any, num_processes: int, num_cached: int, seeds: Sequence[int] | None,
                  pin_memory: bool) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """Run a loader in `num_processes` processes, as nnU-Net does; 0 = in this one.

    Seeds are not left out: without them, forked workers share one stream of torch's random numbers, and with it
    their mirroring and noise (nnunet.md §4).
    """
    if num_processes == 0:
        return SingleThreadedAugmenter(loader, None)
    return BackgroundLoader(loader, num_processes=num_processes, num_cached=num_cached, seeds=seeds,
                            pin_memory=pin_memory, wait_time=0.002)
