"""What the demo does, step by step; each step is a command of nnU-Net or of nnunet_synth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_synth.atomic import write_json
from nnunet_synth.demo.runner import Runner, Step
from nnunet_synth.environment import planning_environment
from nnunet_synth.errors import UserError

DATASET_ID = 900
DATASET = "Dataset900_ChestPhantom"
SMALL, CONFIGURATION = "2d_small", "2d_demo"
TRAINER = "SACPSTrainer"
FEATURES = [8, 16, 32, 64]
TOLERANCE = 6.0         # mm, one pixel of the phantom: NSD at 1 mm would ask for more than the image shows


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        baseline: a stock nnU-Net trainer whose number of epochs (of 250 iterations) is `num_epochs`.
        num_visible: training cases that keep their labels.
    """

    baseline: str
    num_epochs: int
    pretraining_steps: int
    num_labelled: int = 20
    num_unlabelled: int = 20
    num_test: int = 10
    num_visible: int = 4
    size: int = 64
    num_slices: int = 12
    batch_size: int = 4
    pretraining_batch_size: int = 8

    @property
    def ramp_up_epochs(self) -> int:
        """For the first hundreds of steps nothing is found, and empty pseudo-labels would hold the peers there."""
        return self.num_epochs // 2


FULL = Scale(baseline="nnUNetTrainer_5epochs", num_epochs=5, pretraining_steps=400)
QUICK = Scale(baseline="nnUNetTrainer_1epoch", num_epochs=1, pretraining_steps=200, num_unlabelled=8, num_test=6)


@dataclass(frozen=True)
class Job:
    """Where the demo lies and how it is run."""

    folder: Path
    scale: Scale
    seed: int
    device: str

    @property
    def trainers(self) -> tuple[str, str]:
        return self.scale.baseline, TRAINER

    @property
    def raw(self) -> Path:
        return self.folder / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / DATASET

    def results(self, trainer: str, fold: int) -> Path:
        return self.folder / "nnUNet_results" / DATASET / f"{trainer}__nnUNetPlans__{CONFIGURATION}" / f"fold_{fold}"

    def predictions(self, trainer: str) -> Path:
        return self.folder / "predictions" / trainer

    @property
    def environment(self) -> Mapping[str, str]:
        """nnU-Net's folders, and one process for everything: on two cores more of them only cost.

        `OMP_WAIT_POLICY`: PyTorch's threads otherwise spin while they wait for each other; where another program wants
        a core as well, that made a small network 5 to 15 times slower.
        """
        return {**{name: str(self.folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
                "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "PYTHONUNBUFFERED": "1",
                "OMP_WAIT_POLICY": "PASSIVE"}


def run_job(job: Job) -> Runner:
    """Do all steps that are not done; the scores are then in `predictions/*/evaluation.json`.

    Raises:
        UserError: a step failed, or the folder holds a demo with other settings.
    """
    claim(job)
    runner = Runner(job.folder, job.environment)
    number = str(DATASET_ID)
    runner.run(Step("draw the phantom: labelled, unlabelled and test scans of a procedural chest CT",
                    function=lambda: draw(job)))
    runner.run(Step("nnU-Net looks at the labelled scans, plans and preprocesses",
                    ("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "--verify_dataset_integrity", "-np", "1",
                     "-npfp", "1"), environment=tuple(planning_environment(job.environment).items())))
    runner.run(Step(f"add a small network to the plans ({SMALL}), so that a CPU can train it",
                    function=lambda: add_small_configuration(job)))
    runner.run(Step(f"hide the labels of all but {job.scale.num_visible} training scans",
                    ("nnunet_synth", "split", number, "--of-fold", "0", "--labelled", str(job.scale.num_visible),
                     "--seed", str(job.seed), "--force")))
    fold = hidden_fold(job)
    runner.run(Step(f"choose the hyper-parameters: as many epochs as the baseline ({job.scale.num_epochs})",
                    ("nnunet_synth", "configure", number, SMALL, "--name", CONFIGURATION, "--force", "--set",
                     f"num_epochs={job.scale.num_epochs}", f"ramp_up_epochs={job.scale.ramp_up_epochs}",
                     "synthesizer_preset=tiny", f"seed={job.seed}", "preview_every=1", "save_every=1")))
    runner.run(Step("preprocess the unlabelled scans and the lung maps",
                    ("nnunet_synth", "preprocess", number, CONFIGURATION, "--jobs", "1")))
    runner.run(Step("pretrain the synthesizer (SEAN) on the labelled scans",
                    ("nnunet_synth", "pretrain", number, CONFIGURATION, str(fold), "--synthesizer", "sean", "--preset",
                     "tiny", "--steps", str(job.scale.pretraining_steps), "--batch-size",
                     str(job.scale.pretraining_batch_size), "--perceptual", "off", "--samples-every",
                     "200", "--checkpoint-every", "200", "--device", job.device, "--seed", str(job.seed))),
               resume=("--c",) if any(synthesizer_folder(job, fold).glob("train_state.pt")) else ())
    for trainer, title in zip(job.trainers, ("train the baseline: stock nnU-Net, which sees the labelled scans only",
                                             "train SA-CPS: two peers, unlabelled and synthetic scans"), strict=True):
        begun = any(job.results(trainer, fold).glob("checkpoint_*.pth"))
        runner.run(Step(title, ("nnUNetv2_train", number, CONFIGURATION, str(fold), "-tr", trainer, "-device",
                                job.device)), resume=("--c",) if begun else ())
    for trainer in job.trainers:
        runner.run(Step(f"predict the test scans with {trainer}",
                        ("nnUNetv2_predict", "-i", str(job.raw / "imagesTs"), "-o", str(job.predictions(trainer)), "-d",
                         number, "-c", CONFIGURATION, "-f", str(fold), "-tr", trainer, "-device", job.device, "-npp",
                         "1", "-nps", "1", "--disable_tta")))
        runner.run(Step(f"compare the predictions of {trainer} with the truth",
                        ("nnunet_synth", "evaluate", str(job.predictions(trainer)), str(job.raw / "labelsTs"),
                         "--tolerance", f"{TOLERANCE:g}")))
    return runner


def claim(job: Job) -> None:
    """Make the folder this demo's, or raise UserError if it is something else's."""
    settings = {**asdict(job.scale), "seed": job.seed, "device": job.device}
    file = job.folder / "demo.json"
    if file.exists():
        if json.loads(file.read_text()) != settings:
            raise UserError(f"{job.folder} holds a demo with other settings: give another folder, or remove this one")
    elif job.folder.exists() and any(job.folder.iterdir()):
        raise UserError(f"{job.folder} exists and is not empty, nor is it a demo: give another folder")
    else:
        write_json(settings, file)


def draw(job: Job) -> None:
    """The raw dataset, unless an interrupted run has drawn it already."""
    from nnunet_synth.data.phantom import write_phantom_dataset
    if not job.raw.exists():
        scale = job.scale
        write_phantom_dataset(job.folder / "nnUNet_raw", DATASET_ID, num_labelled=scale.num_labelled,
                              num_unlabelled=scale.num_unlabelled, num_test=scale.num_test, size=scale.size,
                              num_slices=scale.num_slices, seed=job.seed)


def add_small_configuration(job: Job) -> None:
    """`2d_small` in the plans: the planned 2d configuration with a U-Net of few features and a small batch."""
    file = job.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    architecture = dict(plans["configurations"]["2d"]["architecture"])
    stages = len(FEATURES)
    architecture["arch_kwargs"] = architecture["arch_kwargs"] | {
        "n_stages": stages, "features_per_stage": FEATURES, "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1), "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1)}
    plans["configurations"][SMALL] = {"inherits_from": "2d", "batch_size": job.scale.batch_size,
                                      "architecture": architecture}
    write_json(plans, file)


def hidden_fold(job: Job) -> int:
    """The index of the fold that `nnunet_synth split` has added: the FOLD of every later command."""
    splits = json.loads((job.preprocessed / "splits_final.json").read_text(encoding="utf-8"))
    return next(index for index, split in enumerate(splits) if split.get("unlabelled"))


def synthesizer_folder(job: Job, fold: int) -> Path:
    return job.results("sean", fold)
