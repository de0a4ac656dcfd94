"""Checkpoint folders: what goes in comes out, and what is wrong is refused with one line."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers import checkpoint
from nnunet_synth.synthesizers.base import SynthRequest
from nnunet_synth.synthesizers.checkpoint import (
    check_synthesizer_fits,
    load_synthesizer,
    load_train_state,
    save_synthesizer,
    save_train_state,
)
from nnunet_synth.synthesizers.semantic import SemanticClasses
from tests.synthesizers.toy import ToySynthesizer, build_toy, toy_meta


@pytest.fixture(autouse=True)
def toy_is_registered(monkeypatch):
    monkeypatch.setattr(checkpoint, "find_synthesizer", lambda name: {"toy": ToySynthesizer}[name])


@pytest.fixture
def folder(tmp_path):
    save_synthesizer(build_toy(), tmp_path / "toy")
    return tmp_path / "toy"


def draw(synthesizer):
    label = torch.zeros(2, 30, 33, dtype=torch.int64)
    label[:, 8:16, 8:16] = 1
    return synthesizer.eval().synthesize(SynthRequest(label=label, layout=torch.ones_like(label),
                                                      generator=torch.Generator().manual_seed(1))).image


def test_round_trip_is_bit_identical(folder):
    saved, loaded = build_toy(), load_synthesizer(folder)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.meta == saved.meta and loaded.config == saved.config
    assert torch.equal(draw(saved), draw(loaded))


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        load_synthesizer(folder)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_missing_folder_and_files(folder, tmp_path):
    refused(tmp_path / "nothing", "no synthesizer in", "nnunet_synth pretrain")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing")
    (folder / "meta.json").unlink()
    refused(folder, "meta.json does not exist")


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    for length in (0, 5, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:length])
        refused(folder, "truncated or damaged")
        save_synthesizer(build_toy(), folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_length_that_looks_like_the_beginning_of_a_pickle(folder):
    """The first bytes of safetensors are the length of their header, which may be 0x0280."""
    weights = folder / "model.safetensors"
    state = load_file(weights)
    for padding in range(0, 2000, 8):
        save_file(state, weights, metadata={"synthesizer": "toy", "padding": "x" * padding})
        if weights.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            break
    else:
        raise AssertionError("no header of such a length")
    assert all(torch.equal(value, load_synthesizer(folder).state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(pickle.dumps(Bomb())),
                                   lambda path: torch.save({"bomb": Bomb()}, path)])
def test_a_pickle_is_never_loaded(folder, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(folder / "model.safetensors")
    refused(folder, "pickle", "never loaded")
    write(folder / "train_state.pt")
    with pytest.raises(UserError, match="truncated or damaged"):
        load_train_state(folder)
    assert not (tmp_path / "exploded").exists()


def test_other_meta(folder):
    path = folder / "meta.json"
    content = json.loads(path.read_text())
    for change, words in (({"format_version": 0}, ("format_version 0",)),
                          ({"config": {"width": 8, "old": 1}}, ("unknown option(s) old",)),
                          ({"config": {"width": 9}}, ("does not fit synthesizer toy",)),
                          ({"surplus": 1}, ("not a synthesizer's",))):
        path.write_text(json.dumps({**content, **change}))
        refused(folder, *words)
    for text in ("{", "[]"):
        path.write_text(text)
        refused(folder, "meta.json")


def test_a_crash_between_writing_and_renaming_leaves_the_old_checkpoint(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def crash(source, target):
        assert source != target
        raise RuntimeError("killed")

    monkeypatch.setattr(os, "replace", crash)
    for save in (lambda: save_synthesizer(build_toy(seed=1), folder), lambda: save_train_state({"step": 1}, folder)):
        with pytest.raises(RuntimeError, match="killed"):
            save()
    monkeypatch.undo()
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "model.safetensors"]


def test_truncated_train_state(folder):
    save_train_state({"step": 3, "tensor": torch.arange(1000)}, folder)
    assert load_train_state(folder)["step"] == 3
    path = folder / "train_state.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_train_state(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Guards


def fits(meta, **changes):
    wanted = {"semantic": meta.semantic, "channel_names": ["CT"], "plans_sha256": "a" * 64, "val_ids": ["other"],
              "patch_size": [32, 32], "spacing": [5.0, 1.0, 1.0], "pretrain_command": "nnunet_synth pretrain 1 2d 0"}
    return check_synthesizer_fits(meta, **{**wanted, **changes})


def test_a_fitting_synthesizer_is_accepted_without_a_word():
    assert fits(toy_meta(metrics={"finished": True})) == []


@pytest.mark.parametrize("changes, words", [
    ({"channel_names": ["T1", "T2"]}, ("['CT']", "['T1', 'T2']")),
    ({"semantic": SemanticClasses.from_labels({"tumour": 1}, {"lung": 1})}, ("'lesion'", "'tumour'")),
    ({"semantic": SemanticClasses.from_labels({"lesion": 1}, {"left": 1, "right": 2})}, ("'lung'", "'left'")),
    ({"semantic": SemanticClasses.from_labels({"lesion": 2}, {"lung": 1})}, ("{'1': 2}", "{'2': 2}")),
    ({"semantic": SemanticClasses.from_labels({"lesion": 1}, {"lung": 4})}, ("{'1': 1}", "{'4': 1}")),
    ({"plans_sha256": "b" * 64}, ("a" * 12, "b" * 12)),
    ({"val_ids": ["x", "toy"]}, ("validation case(s) toy", "pretrain it on this fold: nnunet_synth pretrain 1 2d 0")),
    ({"test_ids": ["toy"]}, ("test case(s) toy",)),
])
def test_a_synthesizer_that_does_not_fit_is_refused_naming_both_values(changes, words):
    with pytest.raises(UserError) as error:
        fits(toy_meta(), **changes)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def test_what_may_work_is_warned_about():
    finished = toy_meta(metrics={"finished": True})
    assert "spacing" in fits(finished, spacing=[1.0, 1.2])[0]
    assert fits(finished, spacing=[1.0, 1.05]) == []
    assert "[80, 32]" in fits(finished, patch_size=[16, 80, 32])[0]
    assert fits(finished, patch_size=[64, 64]) == []
    assert "not trained to its end" in fits(toy_meta(steps=7))[0]
