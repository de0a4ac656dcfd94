"""UniMatch: the step against the paper, the strong views, the feature perturbation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers import UniMatchTrainer
from nnunet_synth.trainers.perturbations import channel_dropout
from nnunet_synth.trainers.synthesis import UnlabelledBatch
from nnunet_synth.trainers.weak_to_strong import (
    StrongView,
    cross_entropy_where_sure,
    cutmix_boxes,
    strong_view,
    sure_labels,
    weak_to_strong_step,
)
from tests.reference import weak_to_strong as reference
from tests.trainers.runs import make_trainer
from tests.trainers.test_cross_pseudo import SOFTMAX, TinyNetwork, assert_same_gradients, gradients, softmax_loss

TAU = 0.6
REGIONS = PseudoLabels(regions=[(1, 2), (2,)], region_order=[1, 2])

# ----------------------------------------------------------------------------------------------------------------------
# The step


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, list[StrongView]]:
    rng = torch.Generator().manual_seed(0)
    x_l, x_w, x_1, x_2 = (torch.randn(3, 1, 6, 6, generator=rng, dtype=torch.float64) for _ in range(4))
    boxes = [torch.zeros(3, 1, 6, 6, dtype=torch.bool) for _ in range(2)]
    boxes[0][0, :, 1:4, 2:5] = True
    boxes[1][2, :, :3] = True
    return (x_l, torch.randint(0, 3, (3, 1, 6, 6), generator=rng), x_w,
            [StrongView(x_1, boxes[0]), StrongView(x_2, boxes[1])])


def perturbed_input(network: nn.Module, x: Tensor, num_samples: int) -> Tensor | list[Tensor]:
    """A stand-in: the copies are perturbed in the image."""
    return network(torch.cat([x, 0.5 * x[-num_samples:] + 0.3]))


def run_step(network: nn.Module, batch: tuple, **options: object) -> dict:
    network.zero_grad()
    settings = {"loss": softmax_loss, "pseudo_labels": SOFTMAX, "backward": Tensor.backward, "confidence": TAU,
                "consistency_weight": 0.8, "with_perturbed": lambda x, n: perturbed_input(network, x, n)}
    return weak_to_strong_step(network, *batch, **{**settings, **options})


def test_loss_is_the_papers(batch: tuple) -> None:
    network = TinyNetwork(1, heads=3)
    x_l, y_l, x_w, views = batch
    results = run_step(network, batch)
    p_w, p_fp, p_1, p_2 = (network(x).softmax(1).detach().numpy()
                           for x in (x_w, 0.5 * x_w + 0.3, views[0].image, views[1].image))
    expected = reference.unlabelled_loss(p_w, p_fp, p_1, p_2, *(view.pasted[:, 0].numpy() for view in views), TAU)
    supervised = float(softmax_loss(network(x_l), y_l).detach())
    assert float(results["loss"]) == pytest.approx(supervised + 0.8 * expected, rel=1e-9)
    assert 0.1 < float(results["sure"]) < 0.9, "or the threshold is not tested"


def test_gradient_is_that_of_the_sum(batch: tuple) -> None:
    network = TinyNetwork(1, heads=3)
    x_l, y_l, x_w, views = batch
    run_step(network, batch)
    got = gradients(network)
    network.zero_grad()
    highest, label = network(x_w).detach().softmax(1).max(1)
    kept = (highest >= TAU).double()
    total = softmax_loss(network(x_l), y_l)
    total = total + 0.4 * (F.cross_entropy(network(0.5 * x_w + 0.3), label, reduction="none") * kept).mean()
    for view in views:
        pasted = view.pasted[:, 0]
        mixed_label, mixed_kept = (torch.where(pasted, part[[2, 0, 1]], part) for part in (label, kept))
        total = total + 0.2 * (F.cross_entropy(network(view.image), mixed_label, reduction="none") * mixed_kept).mean()
    total.backward()
    assert_same_gradients(got, gradients(network))

    run_step(network, batch, consistency_weight=0.0)
    without = gradients(network)
    network.zero_grad()
    softmax_loss(network(x_l), y_l).backward()
    assert_same_gradients(without, gradients(network))
    assert max(float((one - other).abs().max()) for one, other in zip(got, without, strict=True)) > 1e-3


def test_the_weak_views_labels_carry_no_gradient(batch: tuple) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target, sure = sure_labels(logits, 0.5, SOFTMAX)
    assert not target.requires_grad and not sure.requires_grad


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.8, 0.95])
def test_exactly_the_sure_pixels_are_kept(tau: float) -> None:
    logits = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, sure = sure_labels(logits, tau, SOFTMAX)
    label, expected = reference.pseudo_label(logits.softmax(1).numpy(), tau)
    assert np.array_equal(target[:, 0].numpy(), label) and np.array_equal(sure[:, 0].numpy(), expected)
    assert tau == 0 or 0 < expected.mean() < 1

    target, sure = sure_labels(logits[:, :2], tau, REGIONS)
    for region in range(2):     # each is a choice of two of its own
        p = logits[:, region].sigmoid().numpy()
        label, expected = reference.pseudo_label(np.stack([1 - p, p], 1), tau)
        assert np.array_equal(target[:, region].numpy(), label == 1)
        assert np.array_equal(sure[:, region].numpy(), expected)


def test_a_region_that_is_surely_not_there_teaches_too() -> None:
    logits = torch.tensor([-9.0, -0.1]).view(1, 2, 1, 1).requires_grad_()
    target, sure = sure_labels(logits, 0.95, REGIONS)
    assert sure.flatten().tolist() == [True, False] and not target.any()
    cross_entropy_where_sure(logits - logits.detach(), target, sure, REGIONS).backward()
    assert logits.grad.flatten().tolist() == [0.25, 0.0]        # σ(0) over two entries


def test_deep_supervision_compares_the_finest_outputs(batch: tuple) -> None:
    x_l, y_l, x_w, views = batch
    deep, flat = TinyNetwork(1, heads=3, levels=2), TinyNetwork(1, heads=3)
    results = run_step(deep, (x_l, [y_l, y_l[..., 1::2, 1::2]], x_w, views))
    expected = run_step(flat, batch)
    for key in ("loss_feature", "loss_strong", "sure"):
        assert torch.equal(results[key], expected[key])


# ----------------------------------------------------------------------------------------------------------------------
# Views and features


def unlabelled(num_samples: int = 4, size: int = 32) -> UnlabelledBatch:
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(num_samples, 1, size, size, generator=rng)
    valid = torch.ones(num_samples, size, size, dtype=torch.bool)
    valid[..., :4] = False
    layout = torch.ones(num_samples, size, size, dtype=torch.int64)
    layout[:, :6] = 0
    return UnlabelledBatch(image, layout, torch.zeros_like(layout), valid)


def test_boxes() -> None:
    boxes = cutmix_boxes((2000, 1, 40, 50), torch.Generator().manual_seed(0))
    area = boxes.flatten(1).float().mean(1)
    has_box = area > 0
    assert float(has_box.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(area.max()) <= 0.4 and float(area[has_box].min()) >= 0.02 * 0.7       # sides are whole numbers
    rows, columns = boxes[:, 0].any(2).sum(1), boxes[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, boxes.flatten(1).sum(1)), "rectangles"
    large = cutmix_boxes((100, 1, 400, 500), torch.Generator().manual_seed(0))[:, 0]
    rows, columns = large.any(2).sum(1), large.any(1).sum(1)
    ratio = (rows / columns)[rows > 0]
    assert 2.5 < float(ratio.max()) < 3.5 and 1 / 3.5 < float(ratio.min()) < 0.5
    volume = cutmix_boxes((50, 1, 3, 8, 8), torch.Generator().manual_seed(0))
    assert volume.any() and torch.equal(volume[:, :, 0], volume[:, :, 2])


def test_a_pasted_box_carries_image_label_and_confidence_of_the_same_sample() -> None:
    """Images whose value tells the sample, so that the pairing can be read off."""
    batch = unlabelled()
    numbers = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 32, 32)
    generator = torch.Generator().manual_seed(1)
    plain = UnlabelledBatch(numbers, batch.layout, batch.cluster, torch.zeros_like(batch.valid))    # left as it is
    view = strong_view(plain, lambda image, layout: image, generator)
    assert view.pasted.any() and torch.equal(view.mix(numbers), view.image)
    assert torch.equal(view.image != numbers, view.pasted)
    np.testing.assert_array_equal(view.mix(numbers)[:, 0].numpy(),
                                  reference.cutmix(numbers[:, 0].numpy(), view.pasted[:, 0].numpy()))


def test_strong_views_differ_and_leave_the_outside_alone() -> None:
    batch, generator = unlabelled(64), torch.Generator().manual_seed(0)
    before = batch.image.clone()
    first, second = (strong_view(batch, lambda image, layout: torch.where(layout[:, None] > 0, image, -7.0), generator)
                     for _ in range(2))
    assert torch.equal(batch.image, before) and not torch.equal(first.image, second.image)
    assert (first.image[:, :, :6] == -7).all(), "masked stays masked"
    alone = ~first.pasted
    outside = (~batch.valid & (batch.layout > 0))[:, None] & alone
    assert torch.equal(first.image[outside], before[outside])
    inside = (batch.valid & (batch.layout > 0))[:, None] & alone
    unchanged = [torch.equal(image[mask], old[mask])
                 for image, old, mask in zip(first.image, before, inside, strict=True)]
    assert 0 < np.mean(unchanged) < 0.25, "a tenth of them are left alone by both passes"


def test_one_encoding_serves_both_decodings(planned_dataset: Path) -> None:
    trainer = make_trainer(UniMatchTrainer, planned_dataset, seed=0)
    trainer.initialize()
    x, encoded = torch.randn(4, 1, 32, 32), []
    trainer.network.encoder.stages[0].register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    plain = trainer.network(x)
    outputs = trainer.with_perturbed(x, 2)
    assert encoded == [4, 4] and [len(output) for output in outputs] == [6] * len(outputs)
    torch.testing.assert_close(outputs[0][:4], plain[0])
    assert not torch.allclose(outputs[0][4:], plain[0][2:], atol=1e-3)
    assert len(trainer.network(x)[0]) == 4, "and nothing of it stays"


def test_without_dropout_the_copy_is_the_original(planned_dataset: Path) -> None:
    trainer = make_trainer(UniMatchTrainer, planned_dataset, seed=0, feature_dropout=0.0)
    trainer.initialize()
    outputs = trainer.with_perturbed(torch.randn(3, 1, 32, 32), 2)
    torch.testing.assert_close(outputs[0][3:], outputs[0][1:3])


@pytest.mark.parametrize("size", [(6, 6), (2, 6, 6)])
def test_dropout_takes_whole_channels(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dropped = channel_dropout(torch.ones(8, 50, *size), 0.25).flatten(2)
    assert torch.equal(dropped.amin(2), dropped.amax(2))
    share = float((dropped == 0).float().mean())
    assert share == pytest.approx(0.25, abs=0.06) and dropped.unique().tolist() == pytest.approx([0, 4 / 3])
