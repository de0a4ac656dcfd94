"""Pseudo-labels as targets: thresholds, regions, deep supervision, and what is logged about them."""

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_synth.losses.segmentation import PseudoLabels, agreement, foreground_fraction


def test_softmax_labels_are_the_argmax() -> None:
    logits = torch.randn(2, 4, 5, 6)
    assert torch.equal(PseudoLabels().from_logits(logits), logits.argmax(1, keepdim=True))


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_threshold_on_one_foreground_class(threshold: float) -> None:
    """Eq. 9 exactly, the boundary included."""
    p = torch.tensor([0.1, threshold - 1e-3, threshold + 1e-3, 0.95])
    logits = torch.stack([torch.log(1 - p), torch.log(p)])[None]
    labels = PseudoLabels(threshold=threshold).from_logits(logits)
    assert labels[0, 0].tolist() == (p >= threshold).long().tolist()


def test_regions_are_thresholded_one_by_one() -> None:
    logits = torch.tensor([-1.0, 0.0, 1.0]).repeat(2, 1)[None]
    target = PseudoLabels(regions=[(1, 2), (2,)], region_order=[1, 2]).from_logits(logits)
    assert target.dtype == torch.bool and target[0].tolist() == [[False, True, True]] * 2


def test_regions_become_labels_as_nnunet_does_it() -> None:
    manager = LabelManager({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
                           regions_class_order=[1, 2, 3])
    pseudo = PseudoLabels(regions=manager.foreground_regions, region_order=manager.regions_class_order)
    target = torch.rand(2, 3, 7, 7) > 0.5
    expected = torch.stack([torch.as_tensor(manager.convert_probabilities_to_segmentation(sample.float()))
                            for sample in target])
    labels = pseudo.to_labels(target)
    assert torch.equal(labels, expected.long())
    transform = ConvertSegmentationToRegionsTransform(regions=manager.foreground_regions, channel_in_seg=0)
    for sample, label in zip(pseudo.from_labels(labels), labels, strict=True):
        assert torch.equal(sample, transform(segmentation=label[None])["segmentation"].bool())


def test_targets_match_nnunets_deep_supervision() -> None:
    target = torch.randint(0, 3, (2, 1, 16, 12))
    scales = [[1, 1], [0.5, 0.5], [0.25, 0.25]]
    outputs = [torch.zeros(2, 3, 16, 12), torch.zeros(2, 3, 8, 6), torch.zeros(2, 3, 4, 3)]
    levels = PseudoLabels().for_outputs(target, outputs)
    for index, sample in enumerate(target):
        expected = DownsampleSegForDSTransform(scales)(segmentation=sample)["segmentation"]
        for level, wanted in zip(levels, expected, strict=True):
            assert torch.equal(level[index], wanted)
    assert PseudoLabels().for_outputs(target, outputs[0]) is target


def test_regions_with_ignore_label_get_an_empty_ignore_channel() -> None:
    target = torch.rand(1, 2, 4, 4) > 0.5
    levels = PseudoLabels(regions=[(1, 2), (2,)], region_order=[1, 2], has_ignore_channel=True).for_outputs(
        target, [torch.zeros(1, 2, 4, 4)])
    assert levels[0].shape[1] == 3 and not levels[0][:, 2].any() and torch.equal(levels[0][:, :2], target)


def test_agreement_counts_classes() -> None:
    a = torch.tensor([0, 1, 1, 2, 2])
    b = torch.tensor([0, 1, 2, 2, 0])
    assert float(agreement(a, b)) == pytest.approx(2 * 2 / (4 + 3))
    assert float(agreement(a, a)) == 1 and float(agreement(torch.zeros(3), torch.zeros(3))) == 1
    assert float(agreement(a, torch.zeros_like(a))) == 0
    assert float(foreground_fraction(a)) == pytest.approx(0.8)
