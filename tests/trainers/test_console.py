"""What our trainers log on a system that knows no Unicode."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_synth.trainers import SupervisedTrainer
from tests.trainers.runs import make_trainer


def test_the_log_takes_any_sign(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """nnU-Net opens it without naming an encoding."""
    trainer = make_trainer(SupervisedTrainer, planned_dataset)
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ascii")
    trainer.print_to_log_file("a → b ‖ scan_\udcff", {"τ": 1}, add_timestamp=False)
    assert Path(trainer.log_file).read_text().splitlines()[-1] == "a -> b || scan_\\udcff {'tau': 1} "
    assert capsys.readouterr().out.endswith("a -> b || scan_\\udcff {'tau': 1}\n")
