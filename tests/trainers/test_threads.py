"""How many threads a training on the CPU takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_synth.trainers import SupervisedTrainer
from tests.trainers.runs import make_trainer


@pytest.mark.parametrize("wanted, expected", [("1", 1), ("2,1", 2), (None, 3)])
def test_the_users_number_of_threads_outlives_nnunet(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch,
                                                     wanted: str | None, expected: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    before = torch.get_num_threads()
    try:
        trainer = make_trainer(SupervisedTrainer, planned_dataset)
        torch.set_num_threads(3)            # as nnUNetv2_train does, with the number of cores
        trainer.initialize()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
