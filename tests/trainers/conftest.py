"""nnU-Net draws a large progress.png each epoch: most of the time of a tiny training."""

import pytest


@pytest.fixture(autouse=True)
def _no_progress_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png",
                        lambda self, output_folder: None)
