"""The values of a user's label maps, made those of the dataset: 255 → 1, 0.99999 → 1; or the reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunet_synth.data.label_rounding import rounded_labels
from nnunet_synth.dataset_conversion.volumes import value_counts
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK

_MOST_LABELS = 20               # a map with more unknown values is an image, or shows probabilities


def as_labels(stored: SimpleITK.Image, name: str, label_names: Mapping[str, int],
              label_values: Mapping[int, int]) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    """The label map with values that `label_names` declares, and what was changed, for the report.

    Args:
        stored: as read.
        name: of its file, for errors.
        label_values: value in the file → value of the dataset; others stay.

    Raises:
        UserError: values that are no integers, or that nothing names.
    """
    label, repairs = _rounded(stored, name)
    found = list(value_counts(label))
    changed = {value: label_values[value] for value in found if label_values.get(value, value) != value}
    unnamed = [value for value in found if label_values.get(value, value) not in label_names.values()]
    if unnamed:
        raise UserError(f"{name} holds {len(unnamed)} value(s) without a name, "
                        f"{', '.join(f'{value:.10g}' for value in unnamed[:5])}: {_advice(unnamed, label_names)}")
    if changed:
        label = _with_values(label, changed)
        repairs += (f"values changed: {' '.join(f'{old:.10g}={new}' for old, new in changed.items())}",)
    return label, repairs


def _rounded(stored: SimpleITK.Image, name: str) -> tuple[SimpleITK.Image, tuple[str, ...]]:
    import SimpleITK
    values = SimpleITK.GetArrayViewFromImage(stored)
    if values.dtype.kind in "iu":
        return stored, ()
    integers, repair = rounded_labels(values, name)
    return (_like(stored, integers), (repair,)) if repair else (stored, ())


def _with_values(label: SimpleITK.Image, changed: Mapping[int, int]) -> SimpleITK.Image:
    import SimpleITK
    values = SimpleITK.GetArrayViewFromImage(label)
    new = values.astype(np.int32)
    for old, value in changed.items():          # of the old values: 1=2 2=1 exchanges the two
        new[values == old] = value
    return _like(label, new)


def _like(image: SimpleITK.Image, array: np.ndarray) -> SimpleITK.Image:
    import SimpleITK
    label = SimpleITK.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


def _advice(unnamed: Sequence[float], label_names: Mapping[str, int]) -> str:
    if len(unnamed) > _MOST_LABELS:
        return "a label map has a few integers, this looks like an image"
    unnamed = [int(value) for value in unnamed]
    # A word that begins with "-" would be taken for an option.
    options = [f"--label-values={value}=1" for value in unnamed if value < 0]
    if positive := [f"{value}=1" for value in unnamed if value > 0]:
        options.append(f"--label-values {' '.join(positive)}")
    as_known = f"say which label they are, for example {' '.join(options)}"
    first = len(label_names)
    if list(unnamed) != list(range(first, first + len(unnamed))):
        return as_known
    known = " ".join(f"{name}={value}" for name, value in label_names.items())
    more = " ".join(f"NAME{value}={value}" for value in unnamed)
    return f"name them with --label-names {known} {more}, or {as_known}"
