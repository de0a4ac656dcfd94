"""bfloat16 on the CPU, on demand: what is computed in it, and what stays in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_synth.errors import UserError
from nnunet_synth.mixed_precision import VARIABLE, LossInFloat32, autocast
from nnunet_synth.synthesizers.sean import SEAN
from nnunet_synth.trainers import SACPSTrainer
from tests.trainers.runs import make_trainer, save_untrained


@pytest.mark.parametrize("value, dtype", [("1", torch.bfloat16), ("True", torch.bfloat16), ("0", torch.float32),
                                          ("", torch.float32), (None, torch.float32)])
def test_convolutions_are_halved_where_the_user_asks_for_it(monkeypatch: pytest.MonkeyPatch, value: str | None,
                                                            dtype: torch.dtype) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with autocast(torch.device("cpu")):
        assert F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


def test_a_value_that_is_neither_yes_nor_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "maybe")
    with pytest.raises(UserError, match=f"{VARIABLE} is 'maybe': set it to 1 or 0"):
        autocast("cpu")


def test_the_loss_is_that_of_float32() -> None:
    logits = [torch.randn(2, 2, 64, 64).bfloat16(), torch.randn(2, 2, 32, 32).bfloat16()]
    seen = []

    def loss(outputs: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        seen.extend(output.dtype for output in outputs)
        return sum(output.softmax(1)[:, 1].sum() for output in outputs)

    expected = loss([output.float() for output in logits], torch.empty(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = LossInFloat32(loss)(logits, torch.empty(0))
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.float32} and got.dtype == torch.float32 and got.item() == expected.item()


def test_a_training_computes_in_it_and_keeps_its_weights_in_float32(planned_dataset: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    save_untrained(SEAN)
    for value, expected in (("0", torch.float32), ("1", torch.bfloat16)):
        monkeypatch.setenv(VARIABLE, value)
        trainer = make_trainer(SACPSTrainer, planned_dataset, num_epochs=1, seed=0)
        trainer.initialize()
        dtypes = set()

        def note(module: torch.nn.Module, inputs: tuple, skips: list, seen: set = dtypes) -> None:
            if module.training:
                seen.add(skips[-1].dtype)

        for network in (trainer.network, trainer.peer):
            network.encoder.register_forward_hook(note)
        trainer.run_training()
        assert dtypes == {expected}
        assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())
        assert np.isfinite(trainer.epoch_log.read()[-1]["loss"])
