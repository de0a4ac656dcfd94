"""The formats that users hand us, a valid example of each, and the command or function that meets its mutants.

An attempt passes when the command ends with status 0, or with status 2 and one line, and leaves nothing half-written; a
function when it returns or raises UserError.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import SimpleITK
import torch
import yaml

from nnunet_synth.cli import main
from nnunet_synth.config import TrainerConfig
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.raw_images import read_image, read_segmentation
from nnunet_synth.data.unlabelled import PoolPlan, check_pool
from nnunet_synth.errors import UserError
from nnunet_synth.study.parse import STUDIES
from nnunet_synth.synthesizers.checkpoint import load_synthesizer
from tests.conftest import DATASET_ID, FOLDERS, set_folders
from tests.makers.dicom import CTSeries
from tests.mutants.mutate import mutated_bytes, mutated_tree
from tests.trainers.runs import save_untrained_sean

PIXEL_DATA = bytes.fromhex("e07f1000")
NIFTI_HEADER = 352
PROGRESS = re.compile(r".+: \d+(/\d+)?(, \d+ s left)?")
TARGET = 990


@dataclass(frozen=True)
class Format:
    """
    Attributes:
        prepare: writes what does not change into an empty folder.
        attempt: meets one mutant in that folder; returns "taken" or "refused", raises AssertionError or whatever it is
            that must not happen.
    """

    prepare: Callable[[Path], None]
    attempt: Callable[[Path, np.random.Generator], str]


# ----------------------------------------------------------------------------------------------------------------------
# What may happen


def outcome_of_command(*arguments: object) -> str:
    """Run a verb in this process. Raises AssertionError where it says more, or less, than one line."""
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)      # libraries' own, when they are imported
        status = main([str(argument) for argument in arguments])
    lines = said.getvalue().splitlines()
    if status == 0:
        return "taken"
    assert status == 2, (status, lines)
    errors = [line for line in lines if ": error: " in line]
    others = [line for line in lines
              if line not in errors and not line.startswith("warning: ") and not PROGRESS.fullmatch(line)]
    assert len(errors) == 1 and not others, lines
    return "refused"


def outcome_of_call(function: Callable[..., object], *arguments: object) -> str:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            function(*arguments)
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error), str(error)
        return "refused"
    return "taken"


@contextlib.contextmanager
def converted(root: Path) -> Iterator[None]:
    """A folder for what `convert` writes: afterwards a whole dataset lies in it, or none."""
    raw = root / "nnUNet_raw"
    for name in FOLDERS:
        (root / name).mkdir(exist_ok=True)
        os.environ[name] = str(root / name)
    try:
        yield
        for dataset in raw.glob(f"Dataset{TARGET}_*"):
            assert (dataset / "dataset.json").is_file() and any((dataset / "imagesTr").iterdir()), "half a dataset"
    finally:
        shutil.rmtree(raw)


# ----------------------------------------------------------------------------------------------------------------------
# Images


def _write_volumes(root: Path) -> None:
    volume = np.random.default_rng(0).normal(-600, 200, (6, 12, 16)).astype(np.int16)
    for folder, content in (("scans", volume), ("labels", (volume > -500).astype(np.uint8))):
        (root / folder).mkdir()
        for case in ("a", "b"):
            image = SimpleITK.GetImageFromArray(content)
            image.SetSpacing((0.8, 0.8, 5.0))
            SimpleITK.WriteImage(image, str(root / folder / f"{case}.nii"))


def _meet_nifti(root: Path, rng: np.random.Generator) -> str:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    folder = ("scans", "labels")[rng.integers(2)]
    valid = (root / folder / "b.nii").read_bytes()
    mutant = root / folder / "a.nii"
    mutant.write_bytes(mutated_bytes(valid, rng, NIFTI_HEADER if rng.random() < 0.9 else None))
    read = (read_image, [mutant]) if folder == "scans" else (read_segmentation, mutant)
    outcome_of_call(*read, SimpleITKIO())
    with converted(root):
        return outcome_of_command("convert", "folder", root / "scans", "--labels", root / "labels", "-d", TARGET)


def _write_series(root: Path) -> None:
    """Two labelled scans; the mutants are slices of the second."""
    hu = np.random.default_rng(0).integers(-1000, 400, (22, 10, 10))
    (root / "labels").mkdir()
    for case in ("a", "b"):
        series = CTSeries(hu, series=case)
        series.write(root / "valid" / case)
        label = SimpleITK.GetImageFromArray((hu > 0).astype(np.uint8))
        label.SetSpacing(series.spacing[::-1])
        label.SetOrigin(series.origin)
        SimpleITK.WriteImage(label, str(root / "labels" / f"{case}.nii"))


def _meet_dicom(root: Path, rng: np.random.Generator) -> str:
    source = root / "scan"
    shutil.copytree(root / "valid", source)
    try:
        files = sorted((source / "b").iterdir())
        mutant = files[rng.integers(len(files))]
        content = mutant.read_bytes()
        # The pixels follow their tag; only the header changes, and that of the pixels.
        mutant.write_bytes(mutated_bytes(content, rng, content.rindex(PIXEL_DATA) + 12))
        with converted(root):
            return outcome_of_command("convert", "folder", source, "--labels", root / "labels", "-d", TARGET)
    finally:
        shutil.rmtree(source)


# ----------------------------------------------------------------------------------------------------------------------
# Descriptions


def _mutated_json(path: Path, rng: np.random.Generator) -> str:
    """Half of them are broken text, the others JSON that says something else."""
    content = path.read_bytes()
    if rng.random() < 0.3:
        return mutated_bytes(content, rng).decode("utf-8", errors="replace")
    return json.dumps(mutated_tree(json.loads(content), rng))


def _plan(root: Path) -> None:
    """The tiny dataset of the tests, its pool, and an untrained synthesizer."""
    from tests.conftest import plan_and_preprocess
    with pytest.MonkeyPatch.context() as patch:
        from nnunet_synth.data.phantom import write_phantom_dataset
        write_phantom_dataset(root / "nnUNet_raw", DATASET_ID, num_labelled=6, num_unlabelled=3, num_test=2, size=48,
                              num_slices=4, seed=3, healthy_fraction=0.0, name="Tiny")
        set_folders(patch, root)
        patch.setenv("nnUNet_n_proc_DA", "1")
        plan_and_preprocess(root)
        save_untrained_sean()


def _meet_json(root: Path, rng: np.random.Generator) -> str:
    """nnU-Net's descriptions, the pool's and a synthesizer's, each read by the verbs that need it."""
    for name in FOLDERS:
        os.environ[name] = str(root / name)
    preprocessed, = (root / "nnUNet_preprocessed").iterdir()
    raw, = (root / "nnUNet_raw").iterdir()
    synthesizer, = (root / "nnUNet_results").glob("*/sean__*/fold_0")
    files = [preprocessed / "nnUNetPlans.json", preprocessed / "dataset.json", preprocessed / "splits_final.json",
             preprocessed / "dataset_fingerprint.json", preprocessed / "nnUNetPlans_2d_unlabelled.json",
             raw / "dataset.json", synthesizer / "meta.json"]
    file = files[rng.integers(len(files))]
    before = {path: path.read_bytes() for path in files if path.exists()}
    try:
        file.write_text(_mutated_json(file, rng), encoding="utf-8")
        if file.name == "meta.json":
            return outcome_of_call(load_synthesizer, synthesizer)
        chosen = rng.random()
        if chosen < 0.6:
            return outcome_of_call(_read_fold)
        if chosen < 0.75 or file.name == "splits_final.json":
            return outcome_of_command("split", DATASET_ID, "--of-fold", 0, "--labelled", "50%")
        if chosen < 0.9:
            return outcome_of_command("configure", DATASET_ID, "2d", "--name", "2d_other", "--set", "num_epochs=5")
        return outcome_of_command("preprocess", DATASET_ID, "2d", "--jobs", 1)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def _read_fold() -> None:
    """What a training looks up before it begins."""
    experiment = load_experiment(DATASET_ID, "2d", 0)
    TrainerConfig.from_plans_configuration(experiment.configuration_manager.configuration.get("nnunet_synth", {}))
    assert experiment.train_ids is not None and experiment.semantic is not None and experiment.split_sha256
    check_pool(experiment)
    assert PoolPlan(experiment).is_complete is not None


def _meet_yaml(root: Path, rng: np.random.Generator) -> str:
    for name in FOLDERS:
        (root / name).mkdir(exist_ok=True)
        os.environ[name] = str(root / name)
    packaged = sorted(STUDIES.glob("*.yaml"))
    text = packaged[rng.integers(len(packaged))].read_text(encoding="utf-8")
    if rng.random() < 0.4:
        text = mutated_bytes(text.encode(), rng).decode("utf-8", errors="replace")
    else:
        text = yaml.safe_dump(mutated_tree(yaml.safe_load(text), rng))
    (root / "mutant.yaml").write_text(text, encoding="utf-8")
    return outcome_of_command("study", root / "mutant.yaml", "--folder", root / "out", "--dry-run", "--device", "cpu")


def _meet_safetensors(root: Path, rng: np.random.Generator) -> str:
    """Half of them in the header, the others anywhere: no changed file may be drawn with."""
    synthesizer, = (root / "nnUNet_results").glob("*/sean__*/fold_0")
    file = synthesizer / "model.safetensors"
    valid = file.read_bytes()
    header = 8 + int.from_bytes(valid[:8], "little")
    mutant = mutated_bytes(valid, rng, header if rng.random() < 0.5 else None)
    try:
        file.write_bytes(mutant)
        outcome = outcome_of_call(load_synthesizer, synthesizer)
        assert outcome == "refused" or _same_tensors(mutant, valid), "changed weights were taken"
        return outcome
    finally:
        file.write_bytes(valid)


def _same_tensors(mutant: bytes, valid: bytes) -> bool:
    found, expected = safetensors.torch.load(mutant), safetensors.torch.load(valid)
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


FORMATS = {
    "nifti": Format(_write_volumes, _meet_nifti),
    "dicom": Format(_write_series, _meet_dicom),
    "json": Format(_plan, _meet_json),
    "yaml": Format(lambda root: None, _meet_yaml),
    "safetensors": Format(_plan, _meet_safetensors),
}


def meet(name: str, root: Path, number: int) -> str:
    """Let mutant `number` of a format be met, always the same one."""
    return FORMATS[name].attempt(root, np.random.default_rng([number, *name.encode()]))
