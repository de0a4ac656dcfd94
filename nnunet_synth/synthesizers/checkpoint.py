"""A synthesizer on disk: a folder with `model.safetensors`, `meta.json` and, for resuming only, `train_state.pt`. Mask
sources lie on it in the same way. Methods that choose among several models of one training keep the earlier ones in
`checkpoints/step_001250/`, …, each like the folder itself.

Nothing is unpickled: weights are safetensors, facts are JSON, and the train state is read with `weights_only=True`.
Every file is written beside its target and renamed, so an interrupted write leaves the previous checkpoint.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from nnunet_synth.atomic import atomic_file, remove_abandoned, write_json
from nnunet_synth.errors import UserError
from nnunet_synth.json_file import read_object
from nnunet_synth.synthesizers import find_synthesizer
from nnunet_synth.synthesizers.base import Synthesizer, SynthMeta, Trainable
from nnunet_synth.synthesizers.checked_weights import load_weights, save_weights
from nnunet_synth.synthesizers.options import config_from_json
from nnunet_synth.synthesizers.semantic import SemanticClasses

WEIGHTS_FILE = "model.safetensors"
META_FILE = "meta.json"
TRAIN_STATE_FILE = "train_state.pt"
KEPT_FOLDER = "checkpoints"         # earlier models, for methods that choose among them
FINAL = "final"                     # what the model in the folder itself is called

# What a pickle, or the zip file that torch.save makes of one, begins with.
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


# ----------------------------------------------------------------------------------------------------------------------
# Saving


def save_synthesizer(synthesizer: Trainable, folder: str | Path) -> None:
    """Write `model.safetensors` (what it exports, in its present state) and `meta.json`."""
    folder = Path(folder)
    state = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
             for name, tensor in synthesizer.export_state().items()}
    remove_abandoned(folder / WEIGHTS_FILE)
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        save_weights(state, temporary)
    save_meta(synthesizer.meta, folder)


def save_meta(meta: SynthMeta, folder: str | Path) -> None:
    write_json(meta.to_json(), Path(folder) / META_FILE)


def kept_checkpoint(folder: str | Path, steps: int) -> Path:
    """The folder of the model after so many steps."""
    return Path(folder) / KEPT_FOLDER / f"step_{steps:06d}"


def list_checkpoints(folder: str | Path) -> dict[str, Path]:
    """Name → folder of every model of a synthesizer: those that were kept (step_001250, …), and at last `final`."""
    kept = sorted(path.parent for path in (Path(folder) / KEPT_FOLDER).glob(f"step_*/{META_FILE}"))
    final = {FINAL: Path(folder)} if (Path(folder) / META_FILE).is_file() else {}
    return {**{path.name: path for path in kept}, **final}


def save_train_state(state: dict[str, Any], folder: str | Path) -> None:
    """Write `train_state.pt`: tensors, numbers, text, lists and dicts only."""
    path = Path(folder) / TRAIN_STATE_FILE
    remove_abandoned(path)
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


# ----------------------------------------------------------------------------------------------------------------------
# Loading


def load_synthesizer(folder: str | Path, device: torch.device | str = "cpu") -> Synthesizer:
    """A trained synthesizer in eval mode, its parameters frozen.

    Raises:
        UserError: the folder or a file of it is missing, damaged, of another format, or does not fit the synthesizer.
    """
    return load_trained(folder, find_synthesizer, device)


def load_trained(folder: str | Path, find: Callable[[str], type[Trainable]],
                 device: torch.device | str = "cpu") -> Trainable:
    """`load_synthesizer` for anything that the loop trains; `find` gives the class of a name."""
    folder = Path(folder)
    meta = load_meta(folder)
    synthesizer_class = find(meta.synthesizer)
    try:
        config = config_from_json(synthesizer_class, meta.config)
    except UserError as error:
        raise UserError(f"{folder / META_FILE}: {error}: copy it again, or pretrain the synthesizer again") from error
    synthesizer = synthesizer_class.build(meta, config)
    try:
        synthesizer.load_exported(_load_weights(folder / WEIGHTS_FILE))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit synthesizer {meta.synthesizer} as meta.json describes "
                        f"it ({_first_line(error)}): pretrain it again") from error
    return synthesizer.to(device).eval().requires_grad_(False)


def load_meta(folder: str | Path) -> SynthMeta:
    """What `meta.json` says. Raises UserError when there is none or it cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no synthesizer in {folder}: train one with nnunet_synth pretrain")
    path = folder / META_FILE
    content = read_object(path, f"{folder} is no synthesizer, or its training stopped before the first checkpoint; run "
                              "nnunet_synth pretrain", "pretrain the synthesizer again")
    try:
        return SynthMeta.from_json(content)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def load_train_state(folder: str | Path) -> dict[str, Any]:
    """What `save_train_state` wrote, on the CPU. Raises UserError when it is missing or damaged."""
    path = Path(folder) / TRAIN_STATE_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: there is nothing to continue, run the same command without --c")
    try:
        if zipfile.is_zipfile(path):        # torch.load does not look at the checksums that torch.save writes
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise UserError(f"{path} is damaged (checksum of {damaged}): start again with --force")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}): start again with --force") from error


def _load_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_weights(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: pretrain the synthesizer again") from error
    except SafetensorError as error:
        # Only now: safetensors begin with a length, whose first byte may be a pickle's, too.
        if path.read_bytes()[:4].startswith(_PICKLE_MAGIC):
            raise UserError(f"{path} is a pickle, not safetensors; pickles can run any code and are never loaded: "
                            "pretrain the synthesizer again") from error
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}): copy it again, or pretrain the "
                        "synthesizer again") from error


def _first_line(error: Exception) -> str:
    """The beginning of a message that may run over many lines (load_state_dict lists every key)."""
    return " ".join(str(error).split())[:160]


# ----------------------------------------------------------------------------------------------------------------------
# May this synthesizer be used here?


def check_synthesizer_fits(meta: SynthMeta, *, semantic: SemanticClasses, channel_names: Sequence[str],
                           plans_sha256: str, val_ids: Iterable[str], patch_size: Sequence[int],
                           spacing: Sequence[float], test_ids: Iterable[str] = (), montage: Sequence[int] = (),
                           kind: str = "synthesizer",
                           pretrain_command: str = "nnunet_synth pretrain DATASET CONFIG FOLD") -> list[str]:
    """Refuse a synthesizer that draws something else than the trainer's images, or that has seen its validation cases.

    Args:
        patch_size: the trainer's; only its last two axes count.
        spacing: mm, the trainer's; only its last two axes count.
        montage: what it is to draw, see `SynthMeta`.
        kind: what it is called in the messages.
        pretrain_command: named in the messages as the cure.

    Returns:
        Warnings, one line each, about what may work but was not trained for.

    Raises:
        UserError: another set of channels, labels or layouts, another normalisation, or a leak.
    """
    name = f"{kind} {meta.synthesizer}"
    expectations = (("channels", list(meta.channel_names), list(channel_names)),
                    ("classes", list(meta.semantic.names), list(semantic.names)),
                    ("label values", meta.semantic.label_classes, semantic.label_classes),
                    ("layout values", meta.semantic.layout_classes, semantic.layout_classes))
    for what, trained, wanted in expectations:
        if trained != wanted:
            raise UserError(f"{name} was trained with {what} {trained}, this dataset has {wanted}: "
                            f"pretrain it on this dataset: {pretrain_command}")
    if meta.plans_sha256 != plans_sha256:
        raise UserError(f"{name} was trained under another normalisation, orientation or spacing (plans "
                        f"hash {meta.plans_sha256[:12]}, these plans have {plans_sha256[:12]}): pretrain it under "
                        f"these plans: {pretrain_command}")
    for part, ids in (("validation", val_ids), ("test", test_ids)):
        leaked = sorted(set(meta.train_case_ids) & set(ids))
        if leaked:
            more = f" and {len(leaked) - 5} more" if len(leaked) > 5 else ""
            raise UserError(f"{name} was trained on {part} case(s) {', '.join(leaked[:5])}{more}; "
                            f"pretrain it on this fold: {pretrain_command}")

    warnings = []
    trained_spacing, wanted_spacing = list(meta.spacing)[-2:], list(spacing)[-2:]
    if any(abs(wanted / trained - 1) > 0.1 for trained, wanted in zip(trained_spacing, wanted_spacing, strict=False)):
        warnings.append(f"{name} was trained at spacing {trained_spacing} mm, this configuration has "
                        f"{wanted_spacing} mm")
    trained_patch, wanted_patch = list(meta.patch_size)[-2:], list(patch_size)[-2:]
    if any(wanted > 2 * trained for trained, wanted in zip(trained_patch, wanted_patch, strict=True)):
        warnings.append(f"{name} was trained on crops of {trained_patch}, this configuration draws "
                        f"{wanted_patch}, more than twice as large")
    if list(meta.montage) != list(montage):
        if meta.config.get("stacked"):
            raise UserError(f"{name} draws the slices of {_representation(meta.montage)} as channels of one image and "
                            f"cannot draw {_representation(montage)}: pretrain it without --option stacked=true")
        warnings.append(f"{name} was trained on {_representation(meta.montage)} and is to draw "
                        f"{_representation(montage)}")
    if not (meta.metrics.get("finished") or meta.metrics.get("kept")):
        warnings.append(f"{name} is not trained to its end (step {meta.steps}): {pretrain_command} --c")
    return warnings


def _representation(montage: Sequence[int]) -> str:
    return f"montages of {montage[0]} × {montage[1]} slices" if montage else "single slices"
