"""One line of JSON an epoch: our loss terms and what the peers think, beside nnU-Net's own log and progress.png."""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_synth.atomic import write_text
from nnunet_synth.kept_aside import keep_aside

FILE_NAME = "semi_supervised.jsonl"
PREVIEWS = "previews"       # folder of the pictures beside it


class EpochLog:
    """The log of a run; a resumed run drops the epochs that it is about to do again, a new one keeps the old log."""

    def __init__(self, output_folder: Path) -> None:
        self.path = Path(output_folder) / FILE_NAME

    def __repr__(self) -> str:
        return FILE_NAME            # nnU-Net writes attributes into debug.json, which exported models carry

    def write(self, epoch: int, values: dict[str, float]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, **values}) + "\n")

    def read(self) -> list[dict[str, float]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]       # a killed run may leave half a line

    def begin(self, num_epochs: int) -> None:
        """Where the checkpoint of a resumed run has `num_epochs`, forget the later ones. Where a new run begins, keep
        what an earlier one wrote under a name with its time, as nnU-Net keeps its own logs."""
        if num_epochs == 0:
            keep_aside(self.path)
            keep_aside(self.path.with_name(PREVIEWS))
        elif self.path.exists():
            kept = [entry for entry in self.read() if entry["epoch"] < num_epochs]
            write_text("".join(json.dumps(entry) + "\n" for entry in kept), self.path)
