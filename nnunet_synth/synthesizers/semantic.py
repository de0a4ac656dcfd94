"""The semantic classes of a synthesizer: background, anatomy (layout), then the dataset's foreground labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SemanticClasses:
    """Which class a pixel belongs to, given its label and its layout.

    SA-CPS III.B: background, left lung, right lung, infection; infection overrides lung. In general: background, the
    layout labels that are not also dataset labels, the dataset's foreground labels in label order.

    Attributes:
        names: the classes, background first.
        layout_classes: layout value (as text, JSON has no other keys) → class.
        label_classes: dataset label → class.
    """

    names: list[str]
    layout_classes: dict[str, int]
    label_classes: dict[str, int]

    @classmethod
    def from_labels(cls, labels: dict[str, int], layout_labels: dict[str, int]) -> SemanticClasses:
        """`labels` and `layout_labels` map names to integer values; background and ignore are left out of both."""
        anatomy = [name for name in sorted(layout_labels, key=layout_labels.get) if name not in labels]
        foreground = sorted(labels, key=labels.get)
        names = ["background", *anatomy, *foreground]
        index = {name: number for number, name in enumerate(names)}
        return cls(names=names,
                   layout_classes={str(value): index[name] for name, value in layout_labels.items()},
                   label_classes={str(value): index[name] for name, value in labels.items()})

    def __len__(self) -> int:
        return len(self.names)

    def combine(self, label: Tensor, layout: Tensor) -> Tensor:
        """[…] int64 semantic classes from [...] int64 dataset labels and [...] int64 layout values."""
        from_layout = _lookup_table(self.layout_classes, label.device)[layout]
        from_label = _lookup_table(self.label_classes, label.device)[label]
        return torch.where(label > 0, from_label, from_layout)

    def one_hot(self, semantic: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, H, W] int64 classes → [N, S, H, W]."""
        return F.one_hot(semantic, len(self)).movedim(-1, 1).to(dtype)


def _lookup_table(classes: dict[str, int], device: torch.device) -> Tensor:
    table = torch.zeros(max((int(value) for value in classes), default=0) + 1, dtype=torch.int64)
    for value, number in classes.items():
        table[int(value)] = number
    return table.to(device)
