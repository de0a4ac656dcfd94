"""What became of the cases of a conversion: for the terminal, for conversion_report.json and for metadata.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_synth import __version__
from nnunet_synth.atomic import write_text
from nnunet_synth.csv_file import to_csv
from nnunet_synth.dataset_conversion.case import DatasetDescription, PassedOver, Role

_MAX_FILES = 1000               # of each reason, by name; of more the number
SUFFIX: dict[Role, str] = {"labelled": "Tr", "unlabelled": "Ul", "test": "Ts"}


@dataclass(frozen=True)
class CaseReport:
    """What became of one case."""

    id: str
    role: Role
    status: str                                     # written | repaired | rejected
    reason: str = ""                                # why it was rejected
    repairs: tuple[str, ...] = ()
    has_label: bool = False
    has_layout: bool = False
    label_counts: dict[str, int] = field(default_factory=dict)      # voxels of each label value
    shape: tuple[int, ...] = ()                     # of the array: [z, y, x] or [y, x]
    spacing: tuple[float, ...] = ()                 # mm, same order (1 where unknown)
    group: str = ""
    files: tuple[str, ...] = ()                     # in the dataset's folder; none if only checked
    sources: dict[str, str] = field(default_factory=dict)           # path → SHA-256
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CaseReport:
        """What `asdict` and JSON made of one; JSON knows no tuples."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()})


@dataclass(frozen=True)
class ConversionReport:
    """What became of all of them."""

    dataset: str
    folder: Path | None                             # None: only checked
    cases: tuple[CaseReport, ...]
    notes: tuple[str, ...] = ()                     # sentences that the user should read
    passed_over: tuple[PassedOver, ...] = ()        # files of the source that belong to no case

    def select(self, role: Role | None = None, status: str | None = None) -> list[CaseReport]:
        return [case for case in self.cases if role in (None, case.role) and status in (None, case.status)]

    @property
    def rejected(self) -> list[CaseReport]:
        return self.select(status="rejected")

    @property
    def usable(self) -> list[CaseReport]:
        return [case for case in self.cases if case.status != "rejected"]

    def to_json(self, description: DatasetDescription, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"dataset": self.dataset, "converted_by": f"nnunet_synth {__version__}",
                "source": description.source, "licence": description.licence, "citation": description.citation,
                "notes": list(description.notes), "options": dict(options),
                "counts": {role: dict(Counter(case.status for case in self.select(role))) for role in SUFFIX},
                "cases": [asdict(case) for case in self.cases],
                "files_not_used": [{"reason": reason, "number": len(files), "files": files[:_MAX_FILES]}
                                   for reason, files in self._passed_over().items()]}

    def _passed_over(self) -> dict[str, list[str]]:
        """Reason → files."""
        files: dict[str, list[str]] = {}
        for one in self.passed_over:
            files.setdefault(one.reason, []).append(one.file)
        return files

    def table(self, max_rejected: int = 20) -> str:
        """Counts, each kind of repair with its number of cases, rejected cases and unused files with their reasons."""
        lines = [f"{'part':<12}{'written':>9}{'repaired':>10}{'rejected':>10}{'labels':>8}"]
        for role in SUFFIX:
            cases = self.select(role)
            if cases:
                count = Counter(case.status for case in cases)
                lines.append(f"{role:<12}{count['written']:>9}{count['repaired']:>10}{count['rejected']:>10}"
                             f"{sum(case.has_label for case in cases):>8}")
        repairs = Counter(_kind(repair) for case in self.cases for repair in case.repairs)
        lines += [f"repaired: {number} x {repair}" for repair, number in repairs.most_common()]
        lines += [f"rejected: {case.role} {case.id}: {case.reason}" for case in self.rejected[:max_rejected]]
        if len(self.rejected) > max_rejected:
            lines.append(f"rejected: {len(self.rejected) - max_rejected} more, see conversion_report.json")
        not_used = self._passed_over()
        lines += [f"not used: {len(files)} file(s), e.g. {files[0]}: {reason}"
                  for reason, files in list(not_used.items())[:max_rejected]]
        if len(not_used) > max_rejected:
            lines.append(f"not used: files for {len(not_used) - max_rejected} more reasons, see conversion_report.json")
        return "\n".join(lines)


def write_metadata(cases: Sequence[CaseReport], file: Path) -> None:
    """A table of id, role and every text, number or truth value in the metadata of `cases`; no file if there is none.

    Columns stand in the order in which the keys appear; what a case does not have is empty.
    """
    rows = [{"id": case.id, "role": case.role,
             **{key: value for key, value in case.metadata.items()
                if key not in ("id", "role") and isinstance(value, str | int | float)}}
            for case in cases]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if columns[2:]:
        write_text(to_csv(columns, rows), file)


def _kind(repair: str) -> str:
    return " ".join("N" if word.isdigit() else word for word in repair.split())
