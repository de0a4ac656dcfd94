"""Fixtures that several rooms share: real images where they exist, and a tiny planned nnU-Net dataset."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

# Before nnU-Net is imported: worker processes cost more than the work of these tests.
os.environ.update(nnUNet_def_n_proc="1", nnUNet_n_proc_DA="0", nnUNet_compile="f")

DATASET_ID = 701
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images (../shared/README.md); skips where there are none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NNUNET_SYNTH_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (NNUNET_SYNTH_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def planned_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's three folders with a phantom dataset (6 labelled, 3 unlabelled, 2 test volumes of 4 × 48 × 48),
    planned for 2d and 3d_fullres with a network of a few thousand weights."""
    from nnunet_synth.data.phantom import write_phantom_dataset
    root = tmp_path_factory.mktemp("nnunet")
    write_phantom_dataset(root / "nnUNet_raw", DATASET_ID, num_labelled=6, num_unlabelled=3, num_test=2, size=48,
                          num_slices=4, seed=3, healthy_fraction=0.0, name="Tiny")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, root)
        patch.setenv("nnUNet_n_proc_DA", "1")       # the planner calls set_num_threads with it
        plan_and_preprocess(root)
    return root


def plan_and_preprocess(root: Path, dataset_id: int = DATASET_ID) -> None:
    """What `nnUNetv2_plan_and_preprocess -c 2d 3d_fullres` does, with a tiny plan in between."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
    (root / "nnUNet_preprocessed").mkdir(exist_ok=True)
    (root / "nnUNet_results").mkdir(exist_ok=True)
    extract_fingerprints([dataset_id], num_processes=1, check_dataset_integrity=False, clean=False, verbose=False)
    plan_experiments([dataset_id])
    plans_file, = (root / "nnUNet_preprocessed").glob(f"Dataset{dataset_id:03d}_*/nnUNetPlans.json")
    plans_file.write_text(json.dumps(shrink(json.loads(plans_file.read_text()))))
    preprocess_in_this_process(root, plans_file)


def preprocess_in_this_process(root: Path, plans_file: Path) -> None:
    """nnU-Net's preprocessing of the labelled cases, without its pool of processes (five seconds a configuration)."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    preprocessed = plans_file.parent
    raw = root / "nnUNet_raw" / preprocessed.name
    dataset_json = json.loads((raw / "dataset.json").read_text())
    plans = PlansManager(str(plans_file))
    for name in {"2d", "3d_fullres"} & set(plans.available_configurations):      # pictures have no third axis
        configuration = plans.get_configuration(name)
        folder = preprocessed / configuration.data_identifier
        folder.mkdir()
        for label in sorted((raw / "labelsTr").iterdir()):
            case = label.name.removesuffix(dataset_json["file_ending"])
            DefaultPreprocessor(verbose=False).run_case_save(
                str(folder / case), [str(raw / "imagesTr" / f"{case}_0000{dataset_json['file_ending']}")], str(label),
                plans, configuration, dataset_json)
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations")


def shrink(plans: dict) -> dict:
    """Networks of three stages and a few features, two samples a batch."""
    for name in ("2d", "3d_fullres"):
        configuration = plans["configurations"].get(name)
        if configuration is None:
            continue
        architecture = configuration["architecture"]["arch_kwargs"]
        dimensions = len(configuration["patch_size"])
        configuration["batch_size"] = 2
        configuration["patch_size"] = [32, 32] if dimensions == 2 else [4, 32, 32]
        stride = [2, 2] if dimensions == 2 else [1, 2, 2]
        kernel = [3] * dimensions if dimensions == 2 else [1, 3, 3]
        architecture.update(n_stages=3, features_per_stage=[4, 8, 16], kernel_sizes=[kernel] * 3,
                            strides=[[1] * dimensions, stride, stride], n_conv_per_stage=[1, 1, 1],
                            n_conv_per_stage_decoder=[1, 1])
    return plans


def set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in FOLDERS:
        patch.setenv(name, str(root / name))


@pytest.fixture
def planned_dataset(planned_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the planned dataset for one test, with nnU-Net's environment variables set; its root folder."""
    for name in FOLDERS:
        shutil.copytree(planned_template / name, tmp_path / name)
    set_folders(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def edit_plans(planned_dataset: Path):
    """edit_plans(**settings): set hyper-parameters of a configuration of the planned dataset."""
    plans_file, = (planned_dataset / "nnUNet_preprocessed").glob("*/nnUNetPlans.json")

    def edit(configuration: str = "2d", **settings: object) -> None:
        plans = json.loads(plans_file.read_text())
        plans["configurations"][configuration].setdefault("nnunet_synth", {}).update(settings)
        plans_file.write_text(json.dumps(plans))

    return edit
