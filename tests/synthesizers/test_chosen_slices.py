"""Which slices a model learns from: the largest lesions of different cases, or those that are named."""

import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import Slices
from nnunet_synth.synthesizers.chosen_slices import choose_slices, parse_slice


def make_slice(case_id, index, pixels, label=1):
    maps = torch.zeros(1, 8, 8, dtype=torch.int64)
    maps.view(-1)[:pixels] = label
    return Slices(torch.full((1, 1, 8, 8), float(index)), maps, torch.zeros_like(maps),
                  torch.ones(1, 8, 8, dtype=torch.bool), [(case_id, index)])


class Source:
    """Cases a (5, 9 and 0 pixels), b (7), c (3 of another label)."""

    parts = (make_slice("a", 0, 5), make_slice("a", 1, 9), make_slice("a", 2, 0), make_slice("b", 4, 7),
             make_slice("c", 0, 3, label=2))

    def iterate(self, only_targets, max_slices=None):
        yield from (part for part in self.parts if (part.label == 1).any() or not only_targets)


def chosen(wanted, number=2, targets=(1,)):
    return [one.origin[0] for one in choose_slices(Source(), wanted, number, targets, ["a", "b", "c", "d"])]


def test_auto_takes_the_largest_of_each_case_and_then_the_next_ones():
    assert chosen(["auto"], 1) == [("a", 1)]
    assert chosen(["auto"], 2) == [("a", 1), ("b", 4)]
    assert chosen(["auto"], 3) == [("a", 1), ("b", 4), ("a", 0)]


def test_named_slices_come_in_their_order():
    assert chosen(["b:4", "a:0"]) == [("b", 4), ("a", 0)]
    one, = choose_slices(Source(), ["a:0"], 4, [1])
    assert one.image.unique().tolist() == [0] and one.label.sum() == 5


def test_pixels_that_nobody_annotated_do_not_count():
    source = Source()
    part = make_slice("e", 0, 60)
    part.valid[:] = False
    source.parts = (*Source.parts, part)
    assert choose_slices(source, ["auto"], 1, [1])[0].origin == [("a", 1)]


@pytest.mark.parametrize(("wanted", "match"), [
    ("a:2", r"slice a:2 holds no pixel of the wanted labels \(1\): choose one of 0, 1$"),
    ("c:0", r"slice c:0 holds no pixel of the wanted labels \(1\): choose one of none$"),
    ("a:9", "slice a:9 is unknown, or shows nothing: a holds the wanted labels in slices 0, 1$"),
    ("x:0", "slice x:0 is unknown: x is no labelled training case of this fold; they are a, b, c, d$"),
    ("a", "slice 'a' is not of the form CASE:INDEX"),
    ("a:first", "slice 'a:first' is not of the form CASE:INDEX"),
])
def test_what_cannot_be_had(wanted, match):
    with pytest.raises(UserError, match=match) as error:
        chosen([wanted])
    assert "\n" not in str(error.value)


def test_too_few_slices():
    with pytest.raises(UserError, match=r"4 slices with a lesion are wanted and the training cases have 3: set "
                                        r"num_models to 3"):
        chosen(["auto"], 4)


def test_case_ids_may_hold_colons():
    assert parse_slice("scan:7:12") == ("scan:7", 12)
