"""One line of JSON an epoch: our loss terms and what the peers think, beside nnU-Net's own log and progress.png."""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_synth.atomic import write_text

FILE_NAME = "semi_supervised.jsonl"


class EpochLog:
    """The log of a run; a resumed run drops the epochs that it is about to do again."""

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

    def truncate(self, num_epochs: int) -> None:
        """Forget epochs from `num_epochs` on."""
        if self.path.exists():
            kept = [entry for entry in self.read() if entry["epoch"] < num_epochs]
            write_text("".join(json.dumps(entry) + "\n" for entry in kept), self.path)
