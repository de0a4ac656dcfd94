"""Bad input: every command answers with one clear line and status 2, the trainers raise that line, and nothing that is
incomplete is left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention
import torch

from nnunet_synth.cli import main
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.unlabelled import PoolPlan
from nnunet_synth.errors import UserError
from nnunet_synth.trainers import CPSTrainer, SACPSTrainer
from tests.conftest import DATASET_ID
from tests.trainers.runs import make_trainer, save_untrained_sean

PROGRESS_LINE = re.compile(r".+: \d+(/\d+)?(, \d+ s left)?")
PREPROCESS = f"preprocess {DATASET_ID} 2d --jobs 1"
PRETRAIN = f"pretrain {DATASET_ID} 2d 0 --preset tiny --steps 1 --batch-size 1 --device cpu --perceptual off"
SAMPLE = f"sample {DATASET_ID} 2d 0 -n 1 --device cpu --output {{root}}/drawn"

Root = Path


@pytest.fixture
def refused(planned_dataset: Root, capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """refused(line, *words): the command exits with 2 and one line that holds all words; no file is new or changed
    except those that it may write, which are complete."""

    def check(line: str, *words: str, may_write: str | None = None) -> None:
        before = files(planned_dataset)
        status = main(line.format(root=planned_dataset).split())
        said = [text for text in capsys.readouterr().err.splitlines() if not PROGRESS_LINE.fullmatch(text)]
        assert status == 2 and len(said) == 1, (status, said)
        assert said[0].startswith(f"nnunet_synth {line.split()[0]}: error: ")
        assert all(word in said[0] for word in words), said[0]
        after = files(planned_dataset)
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        assert may_write is not None or changed == []
        assert all(may_write in name or NOTES in name for name in changed), changed

    return check


def files(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in root.rglob("*") if path.is_file()}


def raw_folder(root: Root) -> Path:
    folder, = (root / "nnUNet_raw").iterdir()
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# The pool and the layouts


IMAGE = "imagesUl/phantom_ul_000_0000.nii.gz"
NOTES = "/raw_contents/"        # what the labelled and test cases show, whole and true whatever the pool is


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], spacing: tuple[float, ...] | None = None) -> None:
    image = sitk.ReadImage(str(path))
    new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    new.SetSpacing(spacing or image.GetSpacing())
    sitk.WriteImage(new, str(path))


def with_voxel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(image: np.ndarray) -> np.ndarray:
        image = image.astype(np.float32)
        image[1, 2, 3] = value
        return image

    return change


BAD_POOL = {
    "truncated": (lambda raw: os.truncate(raw / IMAGE, 500), [IMAGE, "truncated"]),
    "empty file": (lambda raw: os.truncate(raw / IMAGE, 0), [IMAGE, "0 bytes"]),
    "no image at all": (lambda raw: (raw / IMAGE).write_text("<html>404</html>"), [IMAGE, "no NIfTI"]),
    "NaN": (lambda raw: rewrite(raw / IMAGE, with_voxel(np.nan)), [IMAGE, "NaN"]),
    "infinity": (lambda raw: rewrite(raw / IMAGE, with_voxel(np.inf)), [IMAGE, "infinite"]),
    "a channel too many": (lambda raw: shutil.copy(raw / IMAGE, raw / IMAGE.replace("_0000.", "_0001.")),
                           ["1 channel(s)", "expected phantom_ul_000_0000.nii.gz"]),
    "a channel missing": (lambda raw: (raw / IMAGE).rename(raw / IMAGE.replace("_0000.", "_0001.")),
                          ["1 channel(s)", "expected phantom_ul_000_0000.nii.gz"]),
    "labelled too": (lambda raw: shutil.copy(raw / "imagesTr" / "phantom_tr_002_0000.nii.gz", raw / "imagesUl"),
                     ["phantom_tr_002", "also labelled"]),
    "test case too": (lambda raw: shutil.copy(raw / "imagesTs" / "phantom_ts_001_0000.nii.gz", raw / "imagesUl"),
                      ["phantom_ts_001", "also test"]),
    "spacing in metres": (lambda raw: rewrite(raw / IMAGE, lambda image: image, (0.00771, 0.00771, 0.008)),
                          [IMAGE, "spacing", "0.0077", "mm"]),
    "neither pool nor layouts": (lambda raw: [shutil.rmtree(raw / name) for name in ("imagesUl", "layoutsTr",
                                                                                     "layoutsUl")],
                                 ["neither imagesUl nor layoutsTr", "CASE_0000.nii.gz"]),
}


@pytest.mark.parametrize("name", BAD_POOL)
def test_pool(planned_dataset: Root, refused, name: str) -> None:
    spoil, words = BAD_POOL[name]
    spoil(raw_folder(planned_dataset))
    refused(PREPROCESS, *words, may_write="_unlabelled.json")       # with which plans the pool was begun
    with pytest.raises(UserError) as error:
        make_trainer(CPSTrainer, planned_dataset).run_training()
    assert "\n" not in str(error.value)


BAD_LAYOUTS = {
    "another shape": ("layoutsUl/phantom_ul_001", lambda path: rewrite(path, lambda layout: layout[:, 4:]),
                      ["(4, 44, 48)", "(4, 48, 48)", "voxel grid"]),
    "undeclared value": ("layoutsTr/phantom_tr_001", lambda path: rewrite(path, lambda layout: layout * 5),
                         ["[5, 10]", "left_lung=1, right_lung=2"]),
    "truncated": ("layoutsTr/phantom_tr_001", lambda path: os.truncate(path, 100), ["truncated"]),
}


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_layouts(planned_dataset: Root, refused, name: str) -> None:
    layout, spoil, words = BAD_LAYOUTS[name]
    spoil(raw_folder(planned_dataset) / f"{layout}.nii.gz")
    refused(PREPROCESS, layout, *words, may_write="nnUNetPlans_2d_")
    assert_complete(planned_dataset)
    assert not list((planned_dataset / "nnUNet_preprocessed").glob(f"*/*_layouts/{Path(layout).name}*"))


def test_layouts_that_nobody_declared(planned_dataset: Root, refused) -> None:
    path = raw_folder(planned_dataset) / "dataset.json"
    content = json.loads(path.read_text())
    preprocessed, = (planned_dataset / "nnUNet_preprocessed").glob("*/dataset.json")
    for file in (path, preprocessed):
        file.write_text(json.dumps({key: value for key, value in content.items() if key != "nnunet_synth"}))
    refused(PREPROCESS, "layout_labels", "left_lung", may_write="nnUNetPlans_2d_unlabelled")


def assert_complete(root: Root) -> None:
    """Every stored case has its three files, every stored layout its two, and all can be read."""
    preprocessed, = (root / "nnUNet_preprocessed").iterdir()
    assert not list(preprocessed.glob(".*")) and not list(preprocessed.glob("*/.*"))
    pool = preprocessed / "nnUNetPlans_2d_unlabelled"
    for path in pool.glob("*.pkl"):
        image, outside = (blosc2.open(str(pool / f"{path.stem}{ending}"))[:] for ending in (".b2nd", "_seg.b2nd"))
        assert image.shape == outside.shape and np.isfinite(image).all()
    for path in (preprocessed / "nnUNetPlans_2d_layouts").glob("*.b2nd"):
        layout = blosc2.open(str(path))[:]
        locations = np.load(path.with_name(f"{path.stem}_locations.npy"), allow_pickle=False)
        assert np.all(layout[tuple(locations[:, 1:].T)] > 0)


# ----------------------------------------------------------------------------------------------------------------------
# Training a synthesizer


def write_splits(root: Root, **parts: list[int]) -> None:
    preprocessed, = (root / "nnUNet_preprocessed").iterdir()
    fold = {part: [f"phantom_tr_{number:03d}" for number in numbers] for part, numbers in parts.items()}
    (preprocessed / "splits_final.json").write_text(json.dumps([fold]))


def heal(root: Root, *numbers: int) -> None:
    """Remove the infection from the annotation of preprocessed cases."""
    for number in numbers:
        path, = (root / "nnUNet_preprocessed").glob(f"*/nnUNetPlans_2d/phantom_tr_{number:03d}_seg.b2nd")
        segmentation = blosc2.open(str(path))[:]
        path.unlink()
        blosc2.asarray(np.minimum(segmentation, 0), urlpath=str(path))


def test_a_fold_without_an_infected_slice(planned_dataset: Root, refused) -> None:
    assert main(PREPROCESS.split()) == 0
    write_splits(planned_dataset, train=[0, 1], val=[2])
    heal(planned_dataset, 0, 1)
    refused(PRETRAIN, "no labelled training slice of fold 0 holds a target label")


@pytest.mark.parametrize(("parts", "words"), [
    ({"train": [0, 1], "val": [1, 2]}, ["phantom_tr_001", "labelled", "validation"]),
    ({"train": [0, 1], "unlabelled": [1, 3], "val": [2]}, ["phantom_tr_001", "labelled", "unlabelled"]),
    ({"train": [0, 1], "unlabelled": [2], "val": [2]}, ["phantom_tr_002", "unlabelled", "validation"]),
    ({"train": [], "val": [2]}, ["no labelled training case"]),
    ({"train": [0, 77], "val": [2]}, ["phantom_tr_077", "not preprocessed"]),
])
def test_a_fold_that_leaks_or_is_empty(planned_dataset: Root, refused, parts: dict, words: list[str]) -> None:
    assert main(PREPROCESS.split()) == 0
    write_splits(planned_dataset, **parts)
    refused(PRETRAIN, *words)
    with pytest.raises(UserError, match=words[0]):
        make_trainer(CPSTrainer, planned_dataset).run_training()


@pytest.mark.parametrize(("line", "words"), [
    (f"preprocess {DATASET_ID + 1} 2d", ["702", "found none"]),
    (f"preprocess {DATASET_ID} 2d_x", ["no configuration '2d_x'", "2d, 3d_fullres"]),
    (f"pretrain {DATASET_ID} 2d 0 -p OtherPlans", ["OtherPlans.json does not exist", "nnUNetv2_plan_and_preprocess"]),
    (f"pretrain {DATASET_ID} 2d 0 --synthesizer saen", ["saen", "sean"]),
    (f"pretrain {DATASET_ID} 2d 0 --preset huge", ["huge", "tiny, default, paper"]),
    (f"pretrain {DATASET_ID} 2d 0 --option nfg=8", ["nfg", "ngf"]),
    (f"pretrain {DATASET_ID} 2d 0 --device gpu", ["--device gpu", "cpu, cuda"]),
    (f"configure {DATASET_ID} 2d --name 2d_x --set pseudo_wieght=1", ["pseudo_wieght", "did you mean pseudo_weight?"]),
    (f"configure {DATASET_ID} 2d --name 2d_x --set pseudo_weight=-1", ["pseudo_weight", "at least 0"]),
    (f"configure {DATASET_ID} 2d --name 2d_x --set synthesizer=saen", ["saen", "sean"]),
    (f"configure {DATASET_ID} 2d --name 3d_fullres", ["3d_fullres", "nnU-Net's own"]),
])
def test_what_does_not_exist(refused, line: str, words: list[str]) -> None:
    refused(line, *words)


@pytest.mark.parametrize("verb", ["pretrain", "sample"])
def test_no_cuda(refused, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = " --output {root}/drawn" if verb == "sample" else ""
    refused(f"{verb} {DATASET_ID} 2d 0 --device cuda{output}", "--device cuda", "sees no CUDA device")


# ----------------------------------------------------------------------------------------------------------------------
# A synthesizer that must not be used


def edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, **changes}))

    return edit


def relabelled(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["semantic"]["names"][-1] = "tumour"
    (folder / "meta.json").write_text(json.dumps(meta))


BAD_SYNTHESIZERS = {
    "truncated": (lambda folder: os.truncate(folder / "model.safetensors", 5000), ["model.safetensors", "truncated"]),
    "pickle": (lambda folder: torch.save({"weights": torch.zeros(3)}, folder / "model.safetensors"),
               ["model.safetensors", "pickle", "never loaded"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors is missing"]),
    "broken meta": (lambda folder: os.truncate(folder / "meta.json", 50), ["meta.json", "not valid JSON"]),
    "other labels": (relabelled, ["tumour", "infection", "nnunet_synth pretrain 701 2d 0"]),
    "other channels": (edited(channel_names=["T1"]), ["['T1']", "['CT']", "nnunet_synth pretrain 701 2d 0"]),
    "other normalisation": (edited(plans_sha256="0" * 64), ["normalisation", "nnunet_synth pretrain 701 2d 0"]),
    "saw validation cases": (edited(train_case_ids=[f"phantom_tr_{number:03d}" for number in range(6)]),
                             ["validation case(s) phantom_tr_", "nnunet_synth pretrain 701 2d 0"]),
}


@pytest.mark.parametrize("name", BAD_SYNTHESIZERS)
def test_synthesizer(planned_dataset: Root, refused, name: str) -> None:
    spoil, words = BAD_SYNTHESIZERS[name]
    spoil(save_untrained_sean())
    refused(SAMPLE, *words)
    trainer = make_trainer(SACPSTrainer, planned_dataset)
    with pytest.raises(UserError) as error:
        trainer.run_training()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
    assert not list(Path(trainer.output_folder).glob("*.pth"))


# ----------------------------------------------------------------------------------------------------------------------
# A full disk


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("line", [PREPROCESS, PRETRAIN, f"configure {DATASET_ID} 2d --name 2d_x",
                                  f"split {DATASET_ID} --of-fold 0 --labelled 2"])
def test_full_disk(planned_dataset: Root, refused, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    if line == PRETRAIN:
        assert main(PREPROCESS.split()) == 0
        load_experiment(DATASET_ID, "2d", 0).split      # noqa: B018 - makes nnU-Net's default folds
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        refused(line, "No space left on device", may_write="log.jsonl" if line == PRETRAIN else None)
    assert main(line.split()) == 0


def test_full_disk_in_the_middle_of_the_pool(planned_dataset: Root, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """blosc2 has no word for it; and the case that was being written is written by the next run."""
    write, written = blosc2.asarray, []

    def write_until_full(*args: object, **kwargs: object) -> object:
        if len(written) == 3:
            patch.setattr(os, "fsync", no_space)
            raise RuntimeError("Error while creating the NDArray")
        written.append(kwargs["urlpath"])
        return write(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(blosc2, "asarray", write_until_full)
        refused(PREPROCESS, "No space left on device", may_write="_unlabelled")
    assert_complete(planned_dataset)
    assert PoolPlan(load_experiment(DATASET_ID, "2d")).missing_cases == ["phantom_ul_001", "phantom_ul_002"]
    assert main(PREPROCESS.split()) == 0
    assert_complete(planned_dataset)
    assert PoolPlan(load_experiment(DATASET_ID, "2d")).is_complete


def test_full_disk_between_a_layout_and_its_locations(planned_dataset: Root, refused,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = np.save, []

    def save_until_full(*args: object, **kwargs: object) -> None:
        if saved:
            patch.setattr(os, "fsync", no_space)
            raise OSError("6544 requested and 992 written")         # NumPy's words, without an errno
        saved.append(save(*args, **kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_until_full)
        refused(PREPROCESS, "No space left on device", may_write="nnUNetPlans_2d_")
    assert_complete(planned_dataset)
    assert main(PREPROCESS.split()) == 0
    preprocessed, = (planned_dataset / "nnUNet_preprocessed").iterdir()
    assert len(list(preprocessed.glob("*_layouts/*_locations.npy"))) == 9


def test_what_a_killed_run_left_behind_goes_once_it_is_old(planned_dataset: Root) -> None:
    preprocessed, = (planned_dataset / "nnUNet_preprocessed").iterdir()
    young, old = (preprocessed / f".nnUNetPlans_2d_unlabelled.{name}" for name in ("young", "old"))
    for folder in (young, old):
        folder.mkdir()
        (folder / "phantom_ul_000.b2nd").write_bytes(b"half a case")
    os.utime(old, (0, 0))
    assert main(PREPROCESS.split()) == 0
    assert young.exists() and not old.exists()
