"""Mean teacher and UA-MT: the step against the papers, the teacher that never learns by gradient, the threshold."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from nnunet_synth.errors import UserError
from nnunet_synth.losses.consistency import entropy, highest_entropy
from nnunet_synth.losses.segmentation import PseudoLabels
from nnunet_synth.trainers import MeanTeacherTrainer, UAMTTrainer
from nnunet_synth.trainers.averaged import AveragedNetwork
from nnunet_synth.trainers.configured import unwrap
from nnunet_synth.trainers.mean_teacher import Taught, certain_where, mean_teacher_step
from nnunet_synth.trainers.perturbations import check_is_unet, feature_dropout, with_input_noise
from tests.reference import mean_teacher as reference
from tests.trainers.runs import make_trainer
from tests.trainers.test_cross_pseudo import SOFTMAX, TinyNetwork, assert_same_gradients, gradients, softmax_loss

REGIONS = PseudoLabels(regions=[(1, 2), (2,)], region_order=[1, 2])

# ----------------------------------------------------------------------------------------------------------------------
# The step


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x_l, x_u = (torch.randn(2, 1, 6, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    return x_l, torch.randint(0, 3, (2, 1, 6, 6), generator=rng), x_u


def run_step(student: nn.Module, batch: tuple, taught: Taught, **options: object) -> dict:
    student.zero_grad()
    settings = {"loss": softmax_loss, "pseudo_labels": SOFTMAX, "backward": Tensor.backward, "consistency_weight": 0.7}
    return mean_teacher_step(student, *batch, teach=lambda x: taught, **{**settings, **options})


def random_mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.4


@pytest.mark.parametrize("certain", [None, random_mask(4, 1, 6, 6), torch.zeros(4, 1, 6, 6, dtype=torch.bool)])
def test_loss_is_the_papers(batch: tuple, certain: Tensor | None) -> None:
    student, teacher = TinyNetwork(1, heads=3), TinyNetwork(2, heads=3)
    x = torch.cat([batch[0], batch[2]])
    results = run_step(student, batch, Taught(teacher(x).detach(), certain))
    f_s, f_t = (each(x).softmax(1).detach().numpy() for each in (student, teacher))
    mask = np.ones((4, 6, 6), bool) if certain is None else certain[:, 0].numpy()
    expected = reference.consistency(f_t, f_s, mask)
    assert float(results["loss_consistency"]) == pytest.approx(expected, rel=1e-9)
    supervised = float(softmax_loss(student(batch[0]), batch[1]).detach())
    assert float(results["loss"]) == pytest.approx(supervised + 0.7 * expected, rel=1e-9)
    assert float(results["certain"]) == pytest.approx(mask.mean()) and (expected > 0) == mask.any()


def test_of_two_classes_it_is_the_difference_of_the_foregrounds_probability(batch: tuple) -> None:
    student, teacher = TinyNetwork(1, heads=2), TinyNetwork(2, heads=2)
    x = torch.cat([batch[0], batch[2]])
    results = run_step(student, (batch[0], batch[1].clamp(max=1), batch[2]), Taught(teacher(x).detach()))
    foreground = [each(x).softmax(1)[:, 1] for each in (student, teacher)]
    assert float(results["loss_consistency"]) == pytest.approx(
        float((foreground[0] - foreground[1]).detach().square().mean()))


def test_regions_have_a_mask_each(batch: tuple) -> None:
    student, teacher = TinyNetwork(1, heads=2), TinyNetwork(2, heads=2)
    x, certain = torch.cat([batch[0], batch[2]]), random_mask(4, 2, 6, 6)
    results = run_step(student, batch, Taught(teacher(x).detach(), certain), pseudo_labels=REGIONS,
                       loss=lambda outputs, y: outputs.mean())
    difference = (student(x).sigmoid() - teacher(x).sigmoid()).square()[certain]
    assert float(results["loss_consistency"]) == pytest.approx(float(difference.mean()))


def test_gradient_is_that_of_the_sum_and_reaches_only_the_student(batch: tuple) -> None:
    student, teacher, certain = TinyNetwork(1, heads=3), TinyNetwork(2, heads=3), random_mask(4, 1, 6, 6)
    x_l, y_l, x_u = batch
    student.zero_grad()
    mean_teacher_step(student, *batch, teach=lambda x: Taught(teacher(x), certain), loss=softmax_loss,
                      pseudo_labels=SOFTMAX, backward=Tensor.backward, consistency_weight=0.7)
    got = gradients(student)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    student.zero_grad()
    x = torch.cat([x_l, x_u])
    difference = (student(x).softmax(1) - teacher(x).softmax(1).detach()).square().mean(1, keepdim=True)
    (softmax_loss(student(x_l), y_l) + 0.7 * difference[certain].mean()).backward()
    assert_same_gradients(got, gradients(student))

    run_step(student, batch, Taught(teacher(x).detach(), certain), consistency_weight=0.0)
    without = gradients(student)
    student.zero_grad()
    softmax_loss(student(x_l), y_l).backward()
    assert_same_gradients(without, gradients(student))
    assert max(float((one - other).abs().max()) for one, other in zip(got, without, strict=True)) > 1e-4


def test_deep_supervision_compares_the_finest_outputs(batch: tuple) -> None:
    student = TinyNetwork(1, heads=3, levels=2)
    x_l, y_l, x_u = batch
    taught = Taught(torch.zeros(4, 3, 6, 6, dtype=torch.float64))
    results = run_step(student, (x_l, [y_l, y_l[..., 1::2, 1::2]], x_u), taught)
    expected = (student(torch.cat([x_l, x_u]))[0].softmax(1) - 1 / 3).square().mean()
    assert float(results["loss_consistency"]) == pytest.approx(float(expected))


# ----------------------------------------------------------------------------------------------------------------------
# Uncertainty


def predictions(num_passes: int, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return (3 * torch.randn(num_passes, *shape, generator=rng, dtype=torch.float64)).softmax(2)


@pytest.mark.parametrize("share", [0.75, 0.9])
def test_exactly_the_pixels_below_the_threshold_are_kept(share: float) -> None:
    drawn = predictions(8, 2, 3, 5, 5)
    remaining = list(drawn)
    certain = certain_where(lambda: remaining.pop(), 8, share * math.log(3), exclusive=True)
    expected = reference.uncertainty(drawn.numpy()) < share * math.log(3)
    assert not remaining and np.array_equal(certain[:, 0].numpy(), expected)
    assert 0 < expected.mean() < 1


def test_entropy() -> None:
    p = predictions(1, 2, 3, 4, 4)
    np.testing.assert_allclose(entropy(p[0], exclusive=True)[:, 0].numpy(), reference.uncertainty(p.numpy()))
    region = p[0, :, :2]
    for channel in range(2):
        binary = torch.stack([region[:, channel], 1 - region[:, channel]], 1)[None]
        np.testing.assert_allclose(entropy(region, exclusive=False)[:, channel].numpy(),
                                   reference.uncertainty(binary.numpy()))
    sure = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(entropy(sure, exclusive=True)[:, 0], torch.tensor([0.0, math.log(2)]))
    assert highest_entropy(3, exclusive=True) == math.log(3) and highest_entropy(3, exclusive=False) == math.log(2)


# ----------------------------------------------------------------------------------------------------------------------
# The teacher


def test_the_average_is_the_closed_form(planned_dataset: Path) -> None:
    """Over a real training: after each step the teacher is the weighted mean of all weights the student ever had."""
    trainer = make_trainer(MeanTeacherTrainer, planned_dataset, seed=0, ema_decay=0.6, num_iterations_per_epoch=3)
    trainer.initialize()
    history: list[list[Tensor]] = []
    update = trainer.update_networks

    def remember() -> None:
        update()
        history.append([parameter.detach().double().clone() for parameter in trainer.network.parameters()])

    trainer.update_networks = remember
    trainer.run_training()
    assert trainer.teacher.num_updates == len(history) == 6
    for number, mine in enumerate(trainer.teacher.network.parameters()):
        past = [weights[number].flatten()[0].item() for weights in history]
        assert mine.flatten()[0].item() == pytest.approx(reference.moving_average(past, 0.6), abs=1e-6)
        assert mine.grad is None and not mine.requires_grad
    assert not all(map(torch.equal, trainer.teacher.network.parameters(), trainer.network.parameters()))


def test_the_teacher_starts_from_pretrained_weights(planned_dataset: Path) -> None:
    source = make_trainer(MeanTeacherTrainer, planned_dataset, seed=5)
    source.run_training()
    trainer = make_trainer(MeanTeacherTrainer, planned_dataset, seed=6)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(Path(source.output_folder) / "checkpoint_final.pth"))
    trainer.on_train_start()
    assert all(map(torch.equal, trainer.teacher.network.parameters(), trainer.network.parameters()))


def test_the_teacher_sees_noise_and_the_student_does_not(planned_dataset: Path) -> None:
    trainer = make_trainer(MeanTeacherTrainer, planned_dataset, seed=0, input_noise=0.3)
    trainer.on_train_start()
    seen: dict[str, Tensor] = {}
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.update(student=inputs[0].clone()))
    trainer.teacher.network.register_forward_pre_hook(lambda _, inputs: seen.update(teacher=inputs[0].clone()))
    trainer.train_step(next(trainer.dataloader_train))
    noise = seen["teacher"] - seen["student"]
    assert len(noise) == 4, "labelled and unlabelled samples"
    # a normal variable cut off at two standard deviations has one of 0.959
    assert float(noise.abs().max()) <= 0.6 + 1e-5 and float(noise.std()) == pytest.approx(0.959 * 0.3, abs=0.01)


def test_noise_is_cut_off_at_two_standard_deviations() -> None:
    torch.manual_seed(0)
    noise = with_input_noise(torch.zeros(100_000), 0.1)
    assert float(noise.abs().max()) == pytest.approx(0.2) and float((noise.abs() < 0.2).float().mean()) > 0.94
    assert torch.equal(with_input_noise(noise, 0.0), noise)


def test_dropout_is_only_there_while_asked_for(planned_dataset: Path) -> None:
    trainer = make_trainer(UAMTTrainer, planned_dataset, seed=0)
    trainer.initialize()
    x, teacher = torch.randn(2, 1, 32, 32), trainer.teacher
    plain = teacher(x)
    with feature_dropout(teacher.network, 0.5):
        first, second = teacher(x), teacher(x)
    assert not torch.equal(first, second) and not torch.equal(first, plain)
    assert torch.equal(teacher(x), plain)
    with feature_dropout(teacher.network, 0.0):
        assert torch.equal(teacher(x), plain)


def test_weight_and_threshold_grow_over_the_training(planned_dataset: Path) -> None:
    trainer = make_trainer(UAMTTrainer, planned_dataset, num_epochs=10)
    trainer.initialize()
    for epoch in (0, 4, 9):
        trainer.current_epoch = epoch
        assert trainer.consistency_weight() == pytest.approx(0.1 * reference.ramp(epoch, 10))
        assert trainer.threshold() == pytest.approx((0.75 + 0.25 * reference.ramp(epoch, 10)) * math.log(2))
    plain = make_trainer(MeanTeacherTrainer, planned_dataset, num_epochs=15, consistency_weight=2.0)
    plain.initialize()
    plain.current_epoch = 2
    assert plain.consistency_weight() == pytest.approx(2 * reference.ramp(2, 4))
    plain.current_epoch = 4
    assert plain.consistency_weight() == 2


def test_a_step_asks_the_teacher_often_enough_and_masks_by_its_uncertainty(planned_dataset: Path) -> None:
    trainer = make_trainer(UAMTTrainer, planned_dataset, seed=0, uncertainty_passes=5)
    trainer.on_train_start()
    calls = []
    trainer.teacher.network.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    scalars = trainer.train_step(next(trainer.dataloader_train))
    assert len(calls) == 5 + 1 and 0 <= scalars["certain"] <= 1
    assert len({float(x.sum()) for x in calls}) == 6, "new noise each time"
    trainer.threshold = lambda: 0.0
    assert trainer.train_step(next(trainer.dataloader_train))["loss_consistency"] == 0


def test_the_copy_is_deep(planned_dataset: Path) -> None:
    trainer = make_trainer(MeanTeacherTrainer, planned_dataset, seed=0)
    trainer.initialize()
    before = copy.deepcopy(unwrap(trainer.network).state_dict())
    average = AveragedNetwork(trainer.network, 0.5)
    with torch.no_grad():
        for parameter in average.network.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], value) for key, value in trainer.network.state_dict().items())
    assert trainer.network.decoder.deep_supervision and not average.network.decoder.deep_supervision


def test_a_network_that_is_no_unet_is_refused() -> None:
    with pytest.raises(UserError, match="Linear does not have: use a plan with a U-Net"):
        check_is_unet(nn.Linear(1, 1))
