"""The filter of synthetic images: those that a network takes for real ones with some probability are good enough.

LcGAN, 3.2.3: "A CNN is trained to distinguish between the original and the generated images. While a probability of 50%
would be used for classification of two-class problem, more fake images can be deemed acceptable by decreasing the
threshold", to 10 %. `nnunet_synth select` trains the network and leaves it in the synthesizer's folder
(`classifier.safetensors`, `selection.json`); the trainers load it for `synthetic_accept_threshold`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nnunet_synth.atomic import atomic_file, write_json
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_json
from nnunet_synth.quality.classifier import NETWORKS, make_network
from nnunet_synth.synthesizers.base import SynthMeta
from nnunet_synth.synthesizers.blocks import masked
from nnunet_synth.synthesizers.checkpoint import FINAL, WEIGHTS_FILE, kept_checkpoint, list_checkpoints

FORMAT_VERSION = 1
CLASSIFIER_FILE = "classifier.safetensors"
SELECTION_FILE = "selection.json"
REAL, SYNTHETIC = CLASSES = range(2)
MAX_IMAGES = 64             # at a time
BEST = "best"               # the checkpoint that select put before the others of its synthesizer


@dataclass(frozen=True)
class SelectionRecord:
    """What `selection.json` says beside a synthesizer: how its classifier was made, and how its checkpoints did.

    Attributes:
        network, intensity_range, patch_size: what the classifier is, [lo, hi] of each channel that becomes [-1, 1],
            and the size of the images that it learnt.
        classifier_sha256: of its file.
        accuracy: mean over real and synthetic of the share of held-out images that are told right at ½.
        threshold: at which acceptance was counted.
        checkpoints: name → {"sha256" of its weights' file, "steps", "rank" among all, "acceptance", …}.
        best: the one with the best rank.
    """

    synthesizer: str
    fold: int | str
    split_sha256: str
    plans_sha256: str
    network: str
    intensity_range: list[list[float]]
    patch_size: list[int]
    classifier_sha256: str
    accuracy: float | None
    threshold: float
    checkpoints: dict[str, dict[str, Any]]
    best: str
    made_by: str = ""           # the command
    format_version: int = FORMAT_VERSION


class AcceptanceClassifier(nn.Module):
    """How probably is an image real? Images keep their size: the network averages over whatever it is shown.

    Args:
        network: images [N, C, H, W] in [-1, 1] → logits [N, 2], REAL and SYNTHETIC.
        intensity_range: [lo, hi] of each channel in the segmentation network's intensities.
    """

    def __init__(self, network: nn.Module, intensity_range: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.network = network
        self.intensity_range = intensity_range
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def probability_real(self, unit: Tensor) -> Tensor:
        """[N] float32 of images as `to_unit` makes them; each for itself, whatever its companions."""
        assert not self.network.training
        return torch.cat([self.network(part.float()).float().softmax(1)[:, REAL] for part in unit.split(MAX_IMAGES)])

    def forward(self, image: Tensor, valid: Tensor) -> Tensor:
        """[N, C, *sp] in network intensities and [N, *sp] → [N]; of volumes, the mean over their slices."""
        number = len(image)
        if image.ndim == 5:
            image, valid = image.transpose(1, 2).flatten(0, 1), valid.flatten(0, 1)
        return self.probability_real(to_unit(image, valid, self.intensity_range)).view(number, -1).mean(1)


def to_unit(image: Tensor, valid: Tensor, intensity_range: Sequence[Sequence[float]]) -> Tensor:
    """[N, C, H, W] network intensities → [-1, 1], clamped; −1 where [N, H, W] is not valid."""
    low, high = torch.tensor(intensity_range, dtype=image.dtype, device=image.device).T[..., None, None]
    return masked((2 * (image - low) / (high - low) - 1).clamp(-1, 1), valid)


@dataclass(frozen=True, repr=False)
class AcceptanceGate:
    """Which synthetic samples may be learnt from: those with P(real) ≥ `threshold`.

    Attributes:
        acceptance: share of this model's images that `select` accepted, at the threshold of `record`.
    """

    classifier: AcceptanceClassifier
    threshold: float
    record: SelectionRecord
    acceptance: float | None = None

    def accepts(self, image: Tensor, valid: Tensor) -> Tensor:
        """[N, C, *sp] in network intensities and [N, *sp] → [N] bool."""
        return self.classifier(image, valid) >= self.threshold

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it; a resumed run must find the same."""
        return {"threshold": self.threshold, "classifier_sha256": self.record.classifier_sha256}


# ----------------------------------------------------------------------------------------------------------------------
# On disk


def save_classifier(classifier: AcceptanceClassifier, folder: Path) -> str:
    """Write `classifier.safetensors`; returns its hash."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.network.state_dict().items()}
    with atomic_file(folder / CLASSIFIER_FILE) as temporary:
        save_file(state, temporary)
    return file_sha256(folder / CLASSIFIER_FILE)


def save_record(record: SelectionRecord, folder: Path) -> None:
    write_json(asdict(record), folder / SELECTION_FILE)


def load_record(folder: Path, cure: str) -> SelectionRecord:
    """What `selection.json` in a synthesizer's folder says. Raises UserError: there is none, or it cannot be read."""
    path = folder / SELECTION_FILE
    content = read_json(path, cure, cure)
    if not isinstance(content, Mapping) or content.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} was not written by this version: {cure}")
    try:
        return SelectionRecord(**content)
    except TypeError as error:
        raise UserError(f"{path} is no record of nnunet_synth select ({error}): {cure}") from error


def load_gate(folder: Path, meta: SynthMeta, threshold: float, device: torch.device | str,
              select_command: str) -> AcceptanceGate:
    """The gate of the model in `folder`, from what `select` left in its synthesizer's folder.

    Args:
        meta: of that model.
        select_command: named in the messages as the cure.

    Raises:
        UserError: there is no classifier, it is damaged, or it was made for another synthesizer, fold, normalisation
            or model.
    """
    home, cure = home_of(folder), f"run {select_command}"
    record = load_record(home, f"synthetic_accept_threshold needs the classifier of nnunet_synth select: {cure}")
    name = f"the classifier in {home}"
    for what, theirs, ours in (("synthesizer", record.synthesizer, meta.synthesizer),
                               ("fold", str(record.fold), str(meta.fold)),
                               ("split (hash)", record.split_sha256[:12], meta.split_sha256[:12]),
                               ("plans (hash)", record.plans_sha256[:12], meta.plans_sha256[:12])):
        if theirs != ours:
            raise UserError(f"{name} was made for {what} {theirs}, the synthesizer is of {what} {ours}: {cure}")
    known = {checkpoint["sha256"]: checkpoint for checkpoint in record.checkpoints.values()}
    model = known.get(file_sha256(folder / WEIGHTS_FILE))
    if model is None:
        raise UserError(f"{name} has not seen the model in {folder} (it knows {', '.join(record.checkpoints)} as they "
                        f"were then): {cure}")
    path = home / CLASSIFIER_FILE
    return AcceptanceGate(_load_classifier(path, record, cure).to(device), threshold, record, model.get("acceptance"))


def _load_classifier(path: Path, record: SelectionRecord, cure: str) -> AcceptanceClassifier:
    if not path.is_file():
        raise UserError(f"{path} is missing: {cure}")
    if file_sha256(path) != record.classifier_sha256:
        raise UserError(f"{path} is not the file that {SELECTION_FILE} beside it describes: {cure}")
    if record.network not in NETWORKS:
        raise UserError(f"{path} holds a {record.network}, which this version does not know: {cure}")
    try:
        state = load_file(path)
        with torch.random.fork_rng([]):         # its random initial weights must not cost a training random numbers
            network = make_network(record.network, len(record.intensity_range), len(CLASSES))
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is damaged, or no {record.network} ({reason}): {cure}") from error
    return AcceptanceClassifier(network, record.intensity_range)


def home_of(folder: Path) -> Path:
    """The synthesizer's folder of one of its models: of a kept one, two levels above."""
    kept = list_checkpoints(folder.parent.parent)
    return folder.parent.parent if kept.get(folder.name) == folder else folder


def find_checkpoint(home: Path, name: str, select_command: str) -> Path:
    """The folder of the model `name` ("final", "step_001250", or "best" = as select ranked them) of a synthesizer.

    Raises:
        UserError: there is none of that name, or nobody has ranked them.
    """
    if name == BEST:
        name = load_record(home, f"synthesizer_checkpoint {BEST} needs a ranking: run {select_command}").best
    found = list_checkpoints(home)
    if name == FINAL:
        return home
    if name not in found:
        raise UserError(f"synthesizer_checkpoint {name}: {kept_checkpoint(home, 0).parent} has no such model; there "
                        f"are {', '.join(found)} and, after nnunet_synth select, {BEST}")
    return found[name]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2 ** 20):
            digest.update(part)
    return digest.hexdigest()
