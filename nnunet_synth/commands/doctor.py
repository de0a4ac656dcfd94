"""Check the installation: discovery by nnU-Net, versions, nnU-Net's folders, devices, extras, synthesizers.

Every failure says what to do about it. The exit status is 0 when nothing failed, else 2; warnings do not count.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, entry_points, version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from nnunet_synth.environment import nonsense, planning_environment
from nnunet_synth.errors import UserError

EXAMPLE = "nnunet_synth doctor"

OK, WARN, FAIL = "OK", "WARN", "FAIL"
FREE_GIGABYTES = 10         # below that, a disk is called nearly full
FOLDERS = {"nnUNet_raw": WARN, "nnUNet_preprocessed": FAIL, "nnUNet_results": FAIL}     # when not writable
EXTRAS = {"monai": "eval", "torchmetrics": "eval", "lungmask": "lung", "kornia": "cosingan"}
WORKERS = "nnUNet_n_proc_DA"
VGG19_FILE = "vgg19-dcbb9e9d.pth"       # as torchvision calls it


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    status: str
    subject: str
    text: str
    cure: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> None:
    findings = doctor()
    failed = [finding.subject for finding in findings if finding.status == FAIL]
    if failed:
        raise UserError(f"{len(failed)} check(s) failed ({', '.join(failed)}); the table says what to do")


def doctor() -> list[Finding]:
    """Print the table of all checks and return its lines. A check that crashes is a failure, not the end."""
    findings = []
    for check in CHECKS:
        findings += _survive(check)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.status:4}  {finding.subject:{width}}  {finding.text}")
        if finding.cure:
            print(f"{'':4}  {'':{width}}  → {finding.cure}")
    return findings


def _survive(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    findings = []
    try:
        findings.extend(check())
    except OSError as error:        # e.g. a cache folder of somebody else
        findings.append(Finding(FAIL, check.__name__, f"{error.strerror}: {error.filename}",
                                "change its permissions, or point to another folder"))
    except Exception as error:      # whatever is broken in this environment is what the user wants to know
        findings.append(Finding(FAIL, check.__name__, _one_line(error),
                                "mend the failures above first; if there is none, please report this one"))
    return findings


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# -- versions ----------------------------------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    yield Finding(OK, "python", f"{platform.python_version()} on {platform.platform()}")
    for package in ("nnunet_synth", "nnunetv2", "torch", "safetensors"):
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding(FAIL, package, "not installed", f"pip install {package}")
            continue
        if package == "nnunetv2" and not (2, 8) <= _release(found) < (3, 0):
            yield Finding(FAIL, package, f"{found}: look-up of external trainers came with 2.8",
                          "pip install 'nnunetv2>=2.8,<3'")
        else:
            yield Finding(OK, package, f"{found} in {_place(package)}")


def torchvision_operators() -> Iterator[Finding]:
    """A torchvision built for another torch imports, or fails to, without its compiled operators."""
    import torch
    try:
        import torchvision
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:
        yield Finding(FAIL, "torchvision", f"does not match torch {torch.__version__} ({_one_line(error)})",
                      "reinstall both from one index: pip install --force-reinstall torch torchvision")
    else:
        yield Finding(OK, "torchvision", f"{torchvision.__version__}, its operators match torch {torch.__version__}")


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _place(package: str) -> Path:
    """The folder it would be imported from."""
    return Path(find_spec(package).origin).parent


# -- discovery ---------------------------------------------------------------------------------------------------------


def registration() -> Iterator[Finding]:
    """The start-up file and what it did to the environment."""
    from nnunet_synth._register import SWITCH_OFF, VARIABLE, trainer_folder
    ours = trainer_folder()
    export = f"export {VARIABLE}={ours}"
    start_up = distribution("nnunet_synth").locate_file("nnunet_synth_register.pth")
    if Path(start_up).is_file():
        yield Finding(OK, "start-up file", str(start_up))
    else:
        yield Finding(WARN, "start-up file", f"{start_up} does not exist",
                      f"install with pip into the environment (not with --target or PYTHONPATH), or {export}")

    folders = os.environ.get(VARIABLE, "").split(os.pathsep)
    if ours in folders:
        yield Finding(OK, VARIABLE, os.environ[VARIABLE])
    elif os.environ.get(SWITCH_OFF) == "1":
        yield Finding(FAIL, VARIABLE, f"switched off by {SWITCH_OFF}=1", f"unset {SWITCH_OFF}, or {export}")
    else:
        yield Finding(FAIL, VARIABLE, f"does not hold {ours}", f"reinstall nnunet_synth with pip, or {export}")
    for folder in folders:
        if folder and not os.path.isdir(folder):
            yield Finding(WARN, VARIABLE, f"{folder} does not exist", "nnU-Net skips it: remove it from the variable")


def trainer_look_up() -> Iterator[Finding]:
    """What `nnUNetv2_train -tr SACPSTrainer` does first."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    try:
        from nnunet_synth.trainers import SACPSTrainer
        with redirect_stdout(StringIO()):
            found = recursive_find_trainer_class_by_name(SACPSTrainer.__name__)
    except Exception as error:
        yield Finding(FAIL, "-tr SACPSTrainer", _one_line(error), "mend the checks above this one first")
        return
    where = f"{found.__module__}.{found.__name__}"
    if found is SACPSTrainer:
        yield Finding(OK, "-tr SACPSTrainer", where)
    else:
        yield Finding(FAIL, "-tr SACPSTrainer", f"nnU-Net finds {where} instead of ours",
                      "rename that class, or remove its folder from nnUNet_extTrainer")


def synthesizers() -> Iterator[Finding]:
    from nnunet_synth.synthesizers import ENTRY_POINT_GROUP, find_synthesizer
    names = sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})
    if not names:
        yield Finding(FAIL, "synthesizers", "none is registered", "reinstall nnunet_synth with pip")
    for name in names:
        try:
            found = find_synthesizer(name)
        except Exception as error:
            yield Finding(FAIL, f"synthesizer {name}", _one_line(error), "reinstall the package that registers it")
        else:
            yield Finding(OK, f"synthesizer {name}", f"{found.__module__}.{found.__name__}, presets: "
                                                     f"{', '.join(found.PRESETS)}")


# -- what it runs on ---------------------------------------------------------------------------------------------------


def folders() -> Iterator[Finding]:
    """nnU-Net's three folders."""
    for variable, when_read_only in FOLDERS.items():
        if not os.environ.get(variable):
            yield Finding(FAIL, variable, "not set", f"export {variable}=/a/folder/with/space, e.g. in ~/.bashrc")
            continue
        folder = Path(os.environ[variable])
        if not folder.is_dir():
            yield Finding(FAIL, variable, f"{folder} is no folder", f"mkdir -p {folder}")
            continue
        free = shutil.disk_usage(folder).free / 1e9
        if not _is_writable(folder):
            yield Finding(when_read_only, variable, f"{folder} cannot be written to",
                          f"change its permissions, or set {variable} to another folder")
        elif free < FREE_GIGABYTES:
            yield Finding(WARN, variable, f"{folder}: {free:.1f} GB free", "free some space before training")
        else:
            yield Finding(OK, variable, f"{folder}: {free:.0f} GB free")


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def environment() -> Iterator[Finding]:
    """Variables that are set to what nnU-Net, OpenMP or we cannot follow."""
    for found in nonsense(os.environ):
        yield Finding(FAIL if found.breaks else WARN, found.variable, found.text, found.cure)
    if planning_environment(os.environ):
        yield Finding(WARN, WORKERS, "is 0: nnUNetv2_plan_and_preprocess crashes with it (\"set_num_threads expects a "
                      "positive integer\")", f"set it for the training alone: {WORKERS}=0 nnUNetv2_train …")


def devices() -> Iterator[Finding]:
    import torch
    workers = os.environ.get(WORKERS, "nnU-Net's default")
    yield Finding(OK, "CPU", f"{os.cpu_count()} cores; workers for augmentation ({WORKERS}): {workers}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        try:
            torch.ones(1, device=f"cuda:{index}").add_(1).item()
        except RuntimeError as error:       # e.g. no kernel image for this GPU
            yield Finding(FAIL, f"cuda:{index}", f"{text}: {_one_line(error)}",
                          "install a torch that was built for this GPU: https://pytorch.org/get-started/locally")
        else:
            yield Finding(OK, f"cuda:{index}", text)
    if torch.backends.mps.is_available():
        yield Finding(OK, "mps", "Apple GPU: nnUNetv2_train … -device mps")
    elif torch.cuda.device_count() == 0:
        driver = shutil.which("nvidia-smi")
        reason = f"torch {torch.__version__} does not see one, though {driver} exists" if driver else "none was found"
        cure = "install a torch that was built with CUDA for your driver: https://pytorch.org/get-started/locally" \
            if driver else "train with -device cpu: fine for trying out and tests, far too slow for real data"
        yield Finding(WARN, "GPU", reason, cure)


def extras() -> Iterator[Finding]:
    for package, extra in EXTRAS.items():
        if find_spec(package) is None:
            yield Finding(WARN, package, "not installed (optional)",
                          f"if you need it: pip install 'nnunet_synth[{extra}]'")
        else:
            yield Finding(OK, package, version(package))


def perceptual_features() -> Iterator[Finding]:
    """The weights that the first pretraining needs."""
    import torch
    weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG19_FILE
    if weights.is_file():
        yield Finding(OK, "VGG19 weights", str(weights))
    else:
        yield Finding(WARN, "VGG19 weights", f"not in {weights.parent}: `nnunet_synth pretrain` downloads them, 548 MB",
                      f"without internet: put {VGG19_FILE} there, or choose another --perceptual")


CHECKS = (environment, versions, torchvision_operators, registration, trainer_look_up, synthesizers, folders, devices,
          extras, perceptual_features)
