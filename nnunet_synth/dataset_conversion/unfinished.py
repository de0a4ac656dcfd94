"""A conversion under way: its finished cases lie in a hidden folder until all are there, so that the same command goes
on where it was stopped.

    nnUNet_raw/.Dataset520_Name.lock            held by the one process that writes (`lock.py`)
    nnUNet_raw/.Dataset520_Name.converting/
      dataset/imagesTr …                        will be moved into place
      records/CASE.json                         written after the files of a case: its report and what it was made of
      scratch/                                  members of archives while they are read

A record counts only while nothing has changed that decides how the case looks: its sources (by their stamps), what the
converter knows of it, the options, the description of the dataset, the version of this package. Rejected cases have no
record: they are read again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_synth import __version__
from nnunet_synth.atomic import naming_a_full_disk, write_json
from nnunet_synth.dataset_conversion.case import Case, DatasetDescription
from nnunet_synth.dataset_conversion.report import CaseReport
from nnunet_synth.errors import UserError


@dataclass(frozen=True)
class Unfinished:
    """The hidden folder of one conversion; picklable.

    Attributes:
        folder: where it is.
        made_by: digest of what decides how every case looks.
    """

    folder: Path
    made_by: str

    @classmethod
    def of(cls, folder: Path, description: DatasetDescription, options: Mapping[str, Any]) -> Unfinished:
        return cls(folder, digest([__version__, asdict(description), options]))

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def fingerprint(self, case: Case) -> str:
        """Digest of what decides how this case looks; reads no voxels."""
        return digest([self.made_by, case.id, case.role, case.group, case.metadata,
                       [[str(source), source.stamp()] for source in case.sources]])

    def record(self, report: CaseReport, fingerprint: str) -> None:
        """Note that all files of a case are in `dataset`."""
        sizes = {file: (self.dataset / file).stat().st_size for file in report.files}
        write_json({"fingerprint": fingerprint, "files": sizes, "report": asdict(report)}, self._record(report.id))

    def resume(self, cases: Iterable[Case]) -> dict[str, CaseReport]:
        """The finished ones of `cases`, by id; whatever else lies here is removed."""
        kept, files = {}, set()
        for case in cases:
            record = self._valid_record(case)
            if record is not None:
                kept[case.id] = CaseReport.from_json(record["report"])
                files |= {self._record(case.id), *(self.dataset / file for file in record["files"])}
        self._remove_all_but(files)
        for folder in (self.dataset, self._record("").parent, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        return kept

    def _remove_all_but(self, files: set[Path]) -> None:
        """Remove what a killed run was writing and what was made with other options, and folders left empty."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if not path.is_dir():
                if path not in files:
                    path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()

    def _valid_record(self, case: Case) -> dict[str, Any] | None:
        try:
            record = json.loads(self._record(case.id).read_text(encoding="utf-8"))
            complete = all((self.dataset / file).stat().st_size == size for file, size in record["files"].items())
        except (OSError, ValueError):       # not there, or the power failed while it was written
            return None
        return record if complete and record["fingerprint"] == self.fingerprint(case) else None

    def _record(self, case_id: str) -> Path:
        return self.folder / "records" / f"{case_id}.json"

    @contextmanager
    def kept_if_stopped(self) -> Iterator[None]:
        """Where something in here is stopped, keep the finished cases and say so; keep nothing if there are none."""
        try:
            with naming_a_full_disk(self.folder.parent):
                yield
        except BaseException as error:
            finished = len(list(self._record("").parent.glob("[!.]*.json")))
            kept = f"{finished} finished case(s) are kept in {self.folder}, the same command goes on from there"
            if not finished:
                shutil.rmtree(self.folder, ignore_errors=True)      # the error is what matters
            elif isinstance(error, UserError):
                raise UserError(f"{error} ({kept})") from error
            elif isinstance(error, KeyboardInterrupt):
                print(kept, file=sys.stderr)
            raise


def hidden_folder(dataset: Path) -> Path:
    """Where a dataset is while it is converted."""
    return dataset.with_name(f".{dataset.name}.converting")


def digest(content: Any) -> str:
    """SHA-256 of anything that JSON or `str` can spell."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
