"""Left and right lung by the networks of the `lungmask` package (the extra `lung`), for CT in HU.

J. Hofmanninger et al., *Automatic lung segmentation in routine imaging is primarily a data diversity problem, not a
methodology problem*, European Radiology Experimental 4:50, 2020. The networks see one axial slice at a time, cropped to
the body and shrunk to 256 x 256; R231 includes effusions, consolidation and tumours, R231CovidWeb was trained on
slices from the web as well, LTRCLobes finds lobes and misses what is dense, LTRCLobes_R231 fills its gaps by R231.

The package numbers the right lung 1 and the left one 2, or the lobes 1, 2 (left) and 3 to 5 (right); here it is left
lung 1, right lung 2.

The weights lie where the package caches them (torch's hub folder). The package loads what it downloads with pickle;
here weights are read as plain tensors, checked by their hash, and handed to the package in a file that we wrote.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_synth.data.body_axes import from_canonical, to_canonical
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import torch
    from lungmask import LMInferer

MODELS = {"R231": ("R231",), "R231CovidWeb": ("R231CovidWeb",), "LTRCLobes": ("LTRCLobes",),
          "LTRCLobes_R231": ("LTRCLobes", "R231")}          # the network, and the one that fills what it misses
# Number of the network's classes → our value of each: background; right, left | the lobes: 2 left, 3 right.
VALUES = {3: (0, 2, 1), 6: (0, 1, 1, 2, 2, 2)}
BATCH_SIZE, BATCH_SIZE_ON_CPU = 20, 1                       # slices at a time, as the package's own command line


@dataclass(frozen=True)
class LungNetwork:
    """Weights that are on the disk and were read once, and how to use them. Small: each worker process loads its own.

    Attributes:
        name: of the model, or of the file of weights.
        weights: the network's file.
        fill_weights: file of the network that fills what the first one misses.
        sha256: of each file.
        device: cpu, cuda, cuda:1.
        batch_size: slices at a time.
    """

    name: str
    weights: Path
    fill_weights: Path | None
    sha256: tuple[str, ...]
    device: str
    batch_size: int


def prepare_network(model: str | None = None, weights: str | Path | None = None, device: str = "cpu",
                    batch_size: int | None = None) -> LungNetwork:
    """Fetch the weights if need be, and check that they can be used.

    Args:
        model: a key of MODELS; default R231.
        weights: a file of weights in the package's format instead: R231's architecture with three or six classes.
        device: cpu, cuda, cuda:1.
        batch_size: slices at a time; default: the package's.

    Raises:
        UserError: the package is not installed; unknown model; weights that cannot be fetched or read, or are none of
            this architecture.
    """
    _import_lungmask()
    if model is not None and weights is not None:
        raise UserError("give --model or --weights, not both: a file of weights is a model of its own")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least one slice is needed")
    model = model or "R231"
    if model not in MODELS:
        raise UserError(f"unknown model {model!r}: choose one of {', '.join(MODELS)}")
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"{weights} does not exist: --weights must name a file of lungmask's weights")
    files = [Path(weights)] if weights is not None else [_cached_weights(name) for name in MODELS[model]]
    network = LungNetwork(
        files[0].name if weights is not None else model, files[0], files[1] if len(files) > 1 else None,
        tuple(_sha256(file) for file in files), device,
        batch_size or (BATCH_SIZE_ON_CPU if device == "cpu" else BATCH_SIZE))
    _load(network)
    return network


def find_lungs_by_network(image: np.ndarray, axes: str, network: LungNetwork) -> np.ndarray:
    """Find left and right lung.

    Args:
        image: [z, y, x] in HU; its slices along z (S or I of `axes`) are axial.
        axes: the direction in which each index grows, see `body_axes.py`.

    Returns:
        uint8 map of the shape of `image`: 0 none, 1 left lung, 2 right lung.

    Raises:
        ValueError: the axes are not three different directions of the body.
    """
    inferer, values = _load(network)
    found = inferer.apply(np.ascontiguousarray(to_canonical(image, axes)))
    return from_canonical(values[found], axes)


@lru_cache(maxsize=1)
def _load(network: LungNetwork) -> tuple[LMInferer, np.ndarray]:
    """The package's object for inference, and our value of each of its classes."""
    import torch
    lungmask = _import_lungmask()
    files = [network.weights] + ([network.fill_weights] if network.fill_weights else [])
    states = [_read_weights(file) for file in files]
    with TemporaryDirectory() as folder:
        copies = [str(Path(folder) / str(index)) for index in range(len(states))]
        for state, copy in zip(states, copies, strict=True):
            torch.save(state, copy)
        try:
            inferer = lungmask.LMInferer(modelpath=copies[0], fillmodel_path=copies[1] if len(copies) > 1 else None,
                                         force_cpu=True, batch_size=network.batch_size, tqdm_disable=True)
        except RuntimeError as error:
            raise UserError(f"{network.weights} holds the weights of another network than lungmask's U-Net "
                            f"({str(error).splitlines()[0]})") from error
    inferer.device = torch.device(network.device)
    inferer.model.to(inferer.device)
    if inferer.fillmodelm is not None:
        inferer.fillmodelm.to(inferer.device)
    return inferer, np.array(VALUES[len(states[0]["last.bias"])], np.uint8)


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    """A state dict; nothing but tensors is ever read from the file."""
    import torch
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:                  # UnpicklingError, RuntimeError, EOFError, KeyError, … by what is wrong
        raise UserError(f"{file} holds no weights, or more than weights (such files are not opened): copy it again"
                        ) from error
    bias = state.get("last.bias") if isinstance(state, dict) else None
    if bias is None or len(bias) not in VALUES:
        raise UserError(f"{file} holds no weights of lungmask's: its last layer must have 3 classes (background, right "
                        "and left lung) or 6 (background and five lobes)")
    return state


# ----------------------------------------------------------------------------------------------------------------------
# The package and its cache


def _import_lungmask() -> Any:
    try:
        with warnings.catch_warnings():         # the package switches all warnings of its user off
            import lungmask
    except ImportError as error:
        raise UserError(f"--method lungmask needs the package lungmask ({error}): pip install 'nnunet_synth[lung]', "
                        "or use --method threshold") from error
    lungmask.logger.logger.setLevel("WARNING")
    return lungmask


def _cached_weights(model: str) -> Path:
    """The model's file in torch's hub folder, fetched if it is not there, as the package does."""
    import torch
    from lungmask.mask import MODEL_URLS
    url = MODEL_URLS[model][0]
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    prefix = file.stem.rpartition("-")[2]       # unet_r231-d5d2fc3d.pth: the first digits of its SHA-256
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise UserError(f"the weights of lungmask's {model} cannot be fetched ({error}): download {url} elsewhere "
                            f"and put it into {file.parent}, or name a copy by --weights, or use --method threshold"
                            ) from error
    if not _sha256(file).startswith(prefix):
        raise UserError(f"{file} is damaged (its SHA-256 does not start with {prefix}): remove it, then it is fetched "
                        f"again from {url}")
    return file


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
