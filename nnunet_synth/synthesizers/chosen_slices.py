"""Which labelled slices a synthesizer that learns from single slices is trained on: named ones, or those with the most
lesion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import Slices, SliceSource

AUTO = "auto"


class _Candidate(NamedTuple):
    pixels: int                     # of target labels
    origin: tuple[str, int]         # case id, index along the slice axis


def parse_slice(text: str) -> tuple[str, int]:
    """"CASE:INDEX" → (case id, index along the slice axis). Raises UserError for any other text."""
    case_id, separator, index = text.rpartition(":")
    if not separator or not case_id or not index.isdigit():
        raise UserError(f"slice {text!r} is not of the form CASE:INDEX: give a training case and the index of a slice, "
                        f"or {AUTO}")
    return case_id, int(index)


def choose_slices(source: SliceSource, wanted: Sequence[str], number: int, target_labels: Sequence[int],
                  case_ids: Sequence[str] = ()) -> list[Slices]:
    """Whole labelled slices ([1, …] each).

    Args:
        wanted: "CASE:INDEX", each; or only "auto": the slice with the largest area of target labels from each of
            `number` cases, the largest first, and the next largest ones where there are fewer cases.
        case_ids: of all training cases, for messages.

    Raises:
        UserError: a slice is unknown or holds no target label, or there are fewer slices with one than wanted.
    """
    if list(wanted) == [AUTO]:
        origins = _largest(source, number, target_labels)
    else:
        origins = [parse_slice(text) for text in wanted]
    found = {one.origin[0]: one for one in source.iterate(only_targets=True) if one.origin[0] in origins}
    for origin in origins:
        if origin not in found:
            raise UserError(_missing(source, origin, target_labels, case_ids))
    return [found[origin] for origin in origins]


def target_area(one: Slices, target_labels: Sequence[int]) -> int:
    """How many valid pixels of a slice ([1, …]) carry a target label."""
    return int((np.isin(one.label.numpy(), target_labels) & one.valid.numpy()).sum())


def _largest(source: SliceSource, number: int, target_labels: Sequence[int]) -> list[tuple[str, int]]:
    candidates = sorted((_Candidate(target_area(one, target_labels), one.origin[0])
                         for one in source.iterate(only_targets=True)), key=lambda one: (-one.pixels, one.origin))
    candidates = [one for one in candidates if one.pixels > 0]
    seen: dict[str, int] = {}
    ranked = []         # (how many larger slices its case has, place in the list, origin)
    for place, candidate in enumerate(candidates):
        case_id = candidate.origin[0]
        ranked.append((seen.get(case_id, 0), place, candidate.origin))
        seen[case_id] = seen.get(case_id, 0) + 1
    if len(ranked) < number:
        raise UserError(f"{number} slices with a lesion are wanted and the training cases have {len(ranked)}: set "
                        f"num_models to {max(len(ranked), 1)} (--option num_models={max(len(ranked), 1)})")
    return [origin for _, _, origin in sorted(ranked)[:number]]


def _missing(source: SliceSource, origin: tuple[str, int], target_labels: Sequence[int],
             case_ids: Sequence[str]) -> str:
    case_id, index = origin
    with_targets = [one.origin[0][1] for one in source.iterate(only_targets=True) if one.origin[0][0] == case_id]
    of_case = [one.origin[0][1] for one in source.iterate(only_targets=False) if one.origin[0][0] == case_id]
    labels = ", ".join(map(str, target_labels))
    known = ", ".join(map(str, with_targets)) or "none"
    if not of_case and case_id not in case_ids:
        return f"slice {case_id}:{index} is unknown: {case_id} is no labelled training case of this fold" + (
            f"; they are {', '.join(case_ids[:5])}{' …' if len(case_ids) > 5 else ''}" if case_ids else "")
    if index in of_case:
        return f"slice {case_id}:{index} holds no pixel of the wanted labels ({labels}): choose one of {known}"
    return f"slice {case_id}:{index} is unknown, or shows nothing: {case_id} holds the wanted labels in slices {known}"
