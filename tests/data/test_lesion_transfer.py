"""Lesions keep their place in the organ and never leave it."""

import numpy as np

from nnunet_synth.data.lesion_transfer import transfer_lesions


def organ(height, width, top, bottom, left, right):
    layout = np.zeros((height, width), np.int16)
    layout[top:bottom, left:right] = 1
    return layout


def test_the_same_anatomy_gives_the_same_lesions():
    layout, label = organ(30, 40, 5, 25, 8, 36), np.zeros((30, 40), np.int16)
    label[7:12, 10:20] = 2
    assert np.array_equal(transfer_lesions(label, layout, layout), label)


def test_place_and_size_follow_the_anatomy():
    label = np.zeros((30, 40), np.int16)
    label[5:10, 8:15] = 3           # a quarter of the height and of the width, in the upper left corner
    found = transfer_lesions(label, organ(30, 40, 5, 25, 8, 36), organ(60, 50, 20, 60, 10, 26))
    assert found.dtype == label.dtype and np.array_equal(found > 0, organ(60, 50, 20, 30, 10, 14) > 0)
    assert set(np.unique(found)) == {0, 3}


def test_nothing_leaves_the_new_anatomy():
    label = organ(20, 20, 0, 20, 0, 20)
    y, x = np.mgrid[:40, :40]
    disc = ((y - 20) ** 2 + (x - 20) ** 2 < 100).astype(np.int16)
    found = transfer_lesions(label, label, disc)
    assert np.array_equal(found > 0, disc > 0)


def test_without_anatomy_there_is_nowhere_to_go():
    label = organ(8, 8, 2, 4, 2, 4)
    assert not transfer_lesions(label, np.zeros((8, 8), int), label).any()
    assert not transfer_lesions(label, label, np.zeros((9, 9), int)).any()
