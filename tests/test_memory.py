"""Memory that ran out is one line: how much was asked for, and which setting needs less."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_synth import cli
from nnunet_synth.memory import out_of_memory


def ask_torch() -> None:
    torch.empty(2 ** 60, dtype=torch.uint8)


def ask_numpy() -> None:
    np.empty(2 ** 60, dtype=np.uint8)


def ask_cuda() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")


@pytest.mark.parametrize(("ask", "amount"), [(ask_torch, "1.07e+09 GiB"), (ask_numpy, "1 EiB"), (ask_cuda, "2 GiB")])
def test_every_word_for_it(ask, amount: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as error:
        ask()
    assert out_of_memory(error.value, "pretrain") == \
        f"memory ran out when {amount} were asked for: halve --batch-size"


def test_other_errors_are_not_memory() -> None:
    assert out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "pretrain") is None
    assert out_of_memory(MemoryError(), "evaluate").startswith("memory ran out: close other programs")


def test_the_command_line_ends_with_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("nnunet_synth.commands.doctor.run", lambda args: ask_torch())
    assert cli.main(["doctor"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "memory ran out when 1.07e+09 GiB were asked for" in said[0]
