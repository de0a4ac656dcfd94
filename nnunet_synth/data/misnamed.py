"""Files that are passed over because of their names: nnU-Net says nothing of them, so we do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.data.raw_images import files_in, list_cases

if TYPE_CHECKING:
    from nnunet_synth.data.experiment import Experiment

NUM_EXAMPLES = 3


def passed_over(folder: Path, ending: str) -> str:
    """A sentence about what lies in a folder of images and is no `CASE_0000<ending>`; "" if nothing does.

    Raises:
        UserError: the folder may not be read.
    """
    seen = {file for files in list_cases(folder, ending).values() for file in files}
    return _sentence(folder, [file for file in files_in(folder) if file not in seen], f"CASE_0000{ending}")


def misnamed(experiment: Experiment) -> list[str]:
    """Sentences about what the folders of unlabelled and test images, of layouts and of clusters hold in vain."""
    raw, ending = experiment.raw_folder, experiment.file_ending
    found = [passed_over(raw / name, ending) for name in ("imagesUl", "imagesTs")]
    for part in ("Tr", "Ul"):
        names = {f"{case_id}{ending}" for case_id in list_cases(raw / f"images{part}", ending)}
        for folder in (raw / f"layouts{part}", raw / f"clusters{part}"):
            strays = [file for file in files_in(folder) if file.name not in names]
            found.append(_sentence(folder, strays, f"CASE{ending} as a case of images{part}"))
    return [sentence for sentence in found if sentence]


def _sentence(folder: Path, files: list[Path], wanted: str) -> str:
    names = [file.name for file in files if not file.name.startswith(".")]
    if not names:
        return ""
    examples = ", ".join(names[:NUM_EXAMPLES]) + (", …" if len(names) > NUM_EXAMPLES else "")
    return f"{folder} holds {len(names)} file(s) that are not called {wanted} and are passed over: {examples}; " \
        "rename them, convert them to that format, or move them elsewhere"
