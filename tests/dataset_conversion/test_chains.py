"""From the download to the first training steps: test copy → `convert` → plan, preprocess and verify → SACPSTrainer."""

from __future__ import annotations

import multiprocessing.dummy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_synth.commands.convert import convert
from nnunet_synth.trainers import SACPSTrainer
from tests.conftest import DATASET_ID, plan_and_preprocess, set_folders
from tests.makers import covid19_ct_seg, covid_19_20, folder, mosmed, nccid
from tests.trainers.runs import make_trainer, save_untrained_sean


@dataclass(frozen=True)
class Download:
    """A test copy and how it is converted.

    Attributes:
        write: writes the copy into a folder and returns SOURCE.
        options: of the converter, made from SOURCE.
    """

    source_type: str
    write: Callable[[Path], Path]
    options: Callable[[Path], Mapping[str, Any]] = lambda source: {}

    def convert(self, root: Path, **target: int) -> None:
        source = self.write(root / self.source_type)
        convert(self.source_type, source, **target, **self.options(source))


# In smaller pictures no lesion has the 64 pixels that SEAN wants to take a style from.
SIZE = {"size": 96, "num_slices": 12}

FOLDER = Download("folder", partial(folder.write_tree, **SIZE),
                  lambda source: {"labels": source.parent / "labels", "unlabelled": source.parent / "more"})

MOSMED = Download("mosmed", partial(mosmed.write_tree, **SIZE))
COVID_19_20 = Download("covid-19-20", partial(covid_19_20.write_tree, **SIZE))
COVID19_CT_SEG = Download("covid19-ct-seg", partial(covid19_ct_seg.write_tree, **SIZE))
# A series needs 20 slices.
NCCID = Download("nccid", nccid.write_tree)
NCCID_WITH_MASKS = Download("nccid", partial(nccid.write_tree, size=96),
                            lambda source: {"masks": source.parent / "masks"})


@pytest.mark.slow
@pytest.mark.parametrize("download, pool", [
    (FOLDER, None), (MOSMED, None), (COVID_19_20, None), (NCCID_WITH_MASKS, None), (COVID19_CT_SEG, NCCID),
], ids=["folder", "mosmed", "covid-19-20", "nccid with masks", "covid19-ct-seg with nccid as pool"])
def test_from_the_download_to_training(tmp_path, monkeypatch, download, pool):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    set_folders(monkeypatch, tmp_path)
    (tmp_path / "nnUNet_raw").mkdir()
    download.convert(tmp_path, dataset_id=DATASET_ID)
    if pool is not None:
        pool.convert(tmp_path, add_to_pool=DATASET_ID)
    raw, = (tmp_path / "nnUNet_raw").iterdir()
    with monkeypatch.context() as patch:
        # Checking and fingerprinting in threads: each pool of processes would cost more than the rest of the test.
        patch.setattr(multiprocessing, "get_context", lambda method: multiprocessing.dummy)
        patch.setenv("nnUNet_n_proc_DA", "1")           # the planner calls set_num_threads with it
        verify_dataset_integrity(str(raw), num_processes=1)
        plan_and_preprocess(tmp_path)
    save_untrained_sean()
    trainer = make_trainer(SACPSTrainer, tmp_path, num_epochs=1)
    trainer.run_training()
    assert trainer.experiment.pool_ids == sorted(
        file.name.removesuffix("_0000.nii.gz") for file in (raw / "imagesUl").iterdir())
    entry, = trainer.epoch_log.read()
    assert all(np.isfinite(entry[f"loss_{part}"]) for part in ("supervised", "pseudo", "synthetic"))
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
