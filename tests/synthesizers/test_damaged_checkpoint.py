"""Weights with a flipped bit and impossible numbers in meta.json are refused, in one line, before anything is built."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.checked_weights import load_weights, save_weights, tensors_sha256
from nnunet_synth.synthesizers.checkpoint import (
    load_synthesizer,
    load_train_state,
    save_meta,
    save_synthesizer,
    save_train_state,
)
from nnunet_synth.synthesizers.sean import SEAN, SEANConfig
from nnunet_synth.testing import contract_meta

CONFIG = SEANConfig(ngf=2, num_upsamplings=2, style_dim=4, spade_hidden=2, encoder_width=2, ndf=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_synthesizer(SEAN.build(contract_meta("sean", asdict(CONFIG), 1, 32), CONFIG), tmp_path / "sean")
    return tmp_path / "sean"


@pytest.mark.parametrize("bit", [0, 6])
@pytest.mark.parametrize("place", [-1, -4097, 0.75])
def test_a_flipped_bit_is_seen(folder: Path, place: float, bit: int) -> None:
    load_synthesizer(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its weights are not those that were written") as error:
        load_synthesizer(folder)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_weights_of_older_versions_are_loaded(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"synthesizer": "sean"})
    load_synthesizer(folder)


def test_a_crash_between_the_two_files_leaves_what_loads(folder: Path) -> None:
    """The new weights are there, meta.json is the old one."""
    before = (folder / "meta.json").read_bytes()
    synthesizer = load_synthesizer(folder)
    with torch.no_grad():
        next(synthesizer.parameters()).add_(1)
    save_synthesizer(synthesizer, folder)
    (folder / "meta.json").write_bytes(before)
    load_synthesizer(folder)
    save_meta(synthesizer.meta, folder)
    load_synthesizer(folder)


def test_every_type_and_shape_of_tensor_is_summed(tmp_path: Path) -> None:
    state = {"scalar": torch.tensor(3), "none": torch.zeros(0, 2), "half": torch.ones(3, dtype=torch.bfloat16),
             "bool": torch.tensor([True]), "turned": torch.arange(6.0).view(2, 3).T.contiguous()}
    save_weights(state, tmp_path / "x.safetensors")
    loaded = load_weights(tmp_path / "x.safetensors")
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
    assert tensors_sha256(state) != tensors_sha256({**state, "scalar": torch.tensor(2)})
    assert tensors_sha256({"a": torch.zeros(2, 3)}) != tensors_sha256({"a": torch.zeros(3, 2)})


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("intensity_range", [[float("nan"), 1]], "it must be a finite [low, high] for each channel"),
    ("intensity_range", [[0, float("inf")]], "it must be a finite"),
    ("intensity_range", [[1, -1]], "it must be a finite"),
    ("intensity_range", [[1, 1]], "it must be a finite"), ("intensity_range", [], "it must be a finite"),
    ("intensity_range", [[0, 1], [0, 1]], "it must be a finite"), ("intensity_range", "wide", "it must be a finite"),
    ("patch_size", "large", "patch_size cannot be 'large'"), ("patch_size", [32], "patch_size or montage cannot be"),
    ("patch_size", [10**9, 32], "patch_size cannot be"), ("patch_size", [32.5, 32], "patch_size cannot be"),
    ("divisor", 0, "divisor cannot be 0"), ("divisor", "8", "divisor cannot be '8'"),
    ("steps", -1, "steps cannot be -1"), ("steps", "many", "steps cannot be"), ("steps", True, "steps cannot be"),
    ("seed", -1, "seed cannot be"), ("spacing", [0.0, 1.0, 1.0], "spacing cannot be"),
    ("spacing", [float("nan")] * 3, "spacing cannot be"), ("spacing", ["a"], "spacing cannot be"),
    ("montage", [10**9, 2], "montage cannot be"), ("target_labels", [-1], "target_labels cannot be"),
    ("fold", [0], "fold cannot be"), ("channel_names", "CT", "channel_names cannot be"),
    ("channel_names", [], "channel_names or semantic.names cannot be"),
    ("train_case_ids", [1], "train_case_ids cannot"),
    ("config", [], "config cannot be"), ("metrics", None, "metrics cannot be"),
    ("plans_sha256", 3, "plans_sha256 cannot"),
    ("semantic", {"names": ["background"], "layout_classes": {}, "label_classes": {"9" * 12: 0}},
     "label_classes cannot"),
    ("semantic", {"names": ["background"], "layout_classes": {}, "label_classes": {"1": 7}}, "label_classes cannot be"),
    ("semantic", [], "meta.json is not a synthesizer's"), ("format_version", None, "format_version None"),
    ("config", {**asdict(CONFIG), "ngf": 10**9}, "ngf must be at least 1 and at most 1024, got 1000000000"),
    ("config", {**asdict(CONFIG), "ngf": -3}, "ngf must be at least 1"),
    ("config", {**asdict(CONFIG), "ngf": "wide"}, "ngf must be a whole number, got 'wide'"),
    ("config", {**asdict(CONFIG), "num_upsamplings": 60}, "num_upsamplings must be at least 2 and at most 10"),
    ("config", {**asdict(CONFIG), "generator_lr": float("nan")}, "generator_lr must be a number, got nan"),
]


@pytest.mark.parametrize(("key", "value", "words"), IMPOSSIBLE)
def test_impossible_numbers(folder: Path, key: str, value: Any, words: str) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError) as error:
        load_synthesizer(folder)
    assert words in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_half_a_meta_json(folder: Path) -> None:
    os.truncate(folder / "meta.json", 100)
    with pytest.raises(UserError, match="is not valid JSON"):
        load_synthesizer(folder)


def test_a_flipped_bit_of_the_train_state(tmp_path: Path) -> None:
    """torch.load takes it without a word."""
    save_train_state({"a": torch.arange(10_000.0)}, tmp_path)
    assert torch.equal(load_train_state(tmp_path)["a"], torch.arange(10_000.0))
    path = tmp_path / "train_state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    with pytest.raises(UserError, match="train_state.pt is damaged .checksum of"):
        load_train_state(tmp_path)


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """`select` and the trainers know a model by the hash of its file."""
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}
    for number in range(16):
        save_weights(state, tmp_path / f"{number}.safetensors")
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(16)}) == 1
