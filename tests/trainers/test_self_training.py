"""Self-training: the step against the paper's equations, the trainers end to end in one process, and their rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synth.commands.split import split
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.layouts import open_map
from nnunet_synth.data.splits import splits_file
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.base import SynthResult
from nnunet_synth.trainers import SACPSTrainer, SASTTrainer, STTrainer
from nnunet_synth.trainers.checkpoint import OUR_KEY
from nnunet_synth.trainers.configured import unwrap
from nnunet_synth.trainers.self_training import RestartingPolyLR, self_training_step
from tests.conftest import DATASET_ID
from tests.reference import self_training as reference
from tests.trainers.runs import make_trainer, resumed, save_untrained_sean, train_stock, train_until_killed
from tests.trainers.test_cross_pseudo import (
    ONE_REGION,
    SOFTMAX,
    PaintLabels,
    TinyNetwork,
    assert_same_gradients,
    gradients,
    paper_loss,
    softmax_loss,
)
from tests.trainers.test_hidden_labels import relabel as relabel_case
from tests.trainers.test_settings import WITH_REGIONS_OR_IGNORE, relabel

# ----------------------------------------------------------------------------------------------------------------------
# The step

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def teacher() -> nn.Module:
    return TinyNetwork(2)


@pytest.fixture
def batch(teacher: nn.Module) -> Batch:
    """x_l, y_l, x_u and the teacher's y_p."""
    rng = torch.Generator().manual_seed(0)
    x_l, x_u = (torch.randn(2, 1, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    y_l = (torch.rand(2, 1, 8, 8, generator=rng) > 0.6).double()
    return x_l, y_l, x_u, (teacher(x_u).detach().sigmoid() >= 0.5)[:, 0].long()


def run_step(student: nn.Module, batch: Batch, **options: object) -> dict:
    settings = {"loss": paper_loss, "pseudo_labels": ONE_REGION, "backward": Tensor.backward, "pseudo_weight": 0.5,
                "synthetic_weight": 0.5, "synthesize": PaintLabels()}
    student.zero_grad()
    return self_training_step(student, *batch, **{**settings, **options})


def painted(labels: Tensor) -> Tensor:
    return (labels.double() * 2 - 0.7)[:, None]


def test_loss_is_equation_18(batch: Batch, teacher: nn.Module) -> None:
    student = TinyNetwork(1)
    results = run_step(student, batch)

    def probabilities(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: network(torch.from_numpy(x)).sigmoid().detach().numpy()

    x_l, y_l, x_u, y_p = (part.numpy() for part in batch)
    taught = reference.teach(lambda x: probabilities(teacher)(x[None])[0], x_u, tau=0.5)
    assert np.array_equal(taught[:, 0], y_p)
    expected = reference.sa_st_loss(probabilities(student), x_l, y_l, x_u, taught, lambda y: y * 2 - 0.7, weight=0.5)
    assert float(results["loss"]) == pytest.approx(expected, rel=1e-9)
    assert not torch.equal(results["y_s"], batch[3]), "the student must disagree, or whose labels count is not tested"


def test_gradient_is_that_of_the_sum(batch: Batch) -> None:
    student = TinyNetwork(1)
    run_step(student, batch, pseudo_weight=0.3, synthetic_weight=0.8)
    got = gradients(student)
    student.zero_grad()
    x_l, y_l, x_u, y_p = batch
    target = y_p[:, None].double()
    (paper_loss(student(x_l), y_l) + 0.3 * paper_loss(student(x_u), target)
     + 0.8 * paper_loss(student(painted(y_p)), target)).backward()
    assert_same_gradients(got, gradients(student))


def test_each_weight_changes_the_gradient_and_without_both_it_is_supervised(batch: Batch) -> None:
    student = TinyNetwork(1)
    seen = []
    for pseudo, synthetic in ((0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (0.0, 0.0)):
        run_step(student, batch, pseudo_weight=pseudo, synthetic_weight=synthetic)
        seen.append(torch.cat([gradient.ravel() for gradient in gradients(student)]))
    for index, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-4 for other in seen[index + 1:])
    student.zero_grad()
    paper_loss(student(batch[0]), batch[1]).backward()
    torch.testing.assert_close(seen[-1], torch.cat([gradient.ravel() for gradient in gradients(student)]))
    run_step(student, batch, synthesize=None)
    torch.testing.assert_close(seen[1], torch.cat([gradient.ravel() for gradient in gradients(student)]))


def test_synthetic_images_are_drawn_from_the_teachers_labels_and_paired_with_them(batch: Batch) -> None:
    student, decoder = TinyNetwork(1), PaintLabels()
    pairs = []

    def spying_loss(logits: Tensor, target: Tensor) -> Tensor:
        pairs.append((logits.detach(), target.detach().clone()))
        return paper_loss(logits, target)

    run_step(student, batch, synthesize=decoder, loss=spying_loss)
    asked, = decoder.calls
    assert torch.equal(asked, batch[3])
    (_, on_l), (_, on_u), (logits, on_s) = pairs
    assert torch.equal(on_l, batch[1]) and torch.equal(on_u, on_s) and torch.equal(on_u[:, 0].long(), batch[3])
    torch.testing.assert_close(logits, student(painted(batch[3])))
    assert len(batch[0]) == len(batch[2]) == len(asked), "equal batches"


def test_the_synthetic_terms_gradient_reaches_only_the_student(batch: Batch) -> None:
    """A synthesizer is frozen, and what it draws is a constant: as `Synthesizer.synthesize` gives it."""
    student, decoder = TinyNetwork(1), nn.Conv2d(1, 1, 3, padding=1).double()
    decoder.requires_grad_(False)
    images = []

    def synthesize(labels: Tensor) -> SynthResult:
        images.append(decoder(labels.double()[:, None]))
        return SynthResult(image=images[-1], label=labels, ok=torch.ones(len(labels), dtype=torch.bool))

    before = [parameter.clone() for parameter in decoder.parameters()]
    run_step(student, batch, synthesize=synthesize, pseudo_weight=0.0)
    with_synthetic = gradients(student)
    assert not images[0].requires_grad and all(parameter.grad is None for parameter in decoder.parameters())
    assert all(map(torch.equal, before, decoder.parameters()))
    run_step(student, batch, synthesize=synthesize, pseudo_weight=0.0, synthetic_weight=0.0)
    assert not all(map(torch.equal, with_synthetic, gradients(student)))


def test_samples_that_could_not_be_drawn_are_left_out(batch: Batch) -> None:
    student = TinyNetwork(1, heads=2)
    options = {"loss": softmax_loss, "pseudo_labels": SOFTMAX, "pseudo_weight": 0.0, "synthetic_weight": 1.0}
    run_step(student, batch, synthesize=PaintLabels(ok=[False, True]), **options)
    got = gradients(student)
    student.zero_grad()
    x_l, y_l, _, y_p = batch
    (softmax_loss(student(x_l), y_l) + softmax_loss(student(painted(y_p[1:])), y_p[1:, None])).backward()
    assert_same_gradients(got, gradients(student))
    assert float(run_step(student, batch, synthesize=PaintLabels(ok=[False] * 2), **options)["loss_synthetic"]) == 0


def test_deep_supervision_gets_targets_of_each_level(batch: Batch) -> None:
    student = TinyNetwork(1, heads=3, levels=2)
    x_l, y_l, x_u, y_p = batch
    targets = [y_l, F.interpolate(y_l, scale_factor=0.5, mode="nearest-exact")]
    results = run_step(student, (x_l, targets, x_u, y_p), loss=softmax_loss, pseudo_labels=SOFTMAX)
    expected = softmax_loss(student(x_u), [y_p[:, None], y_p[:, None, 1::2, 1::2]])
    assert float(results["loss_pseudo"]) == pytest.approx(float(expected.detach()))


def test_terms_are_freed_one_after_another(batch: Batch) -> None:
    order = []

    def backward(loss: Tensor) -> None:
        order.append("backward")
        loss.backward()

    def decode(labels: Tensor) -> SynthResult:
        order.append("synthesize")
        return PaintLabels()(labels)

    run_step(TinyNetwork(1), batch, synthesize=decode, backward=backward)
    assert order == ["backward", "synthesize", "backward"]


def test_each_student_begins_the_schedule_anew() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.01)
    schedule = RestartingPolyLR(optimizer, 0.01, 4)
    rates = []
    for epoch in range(12):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx([0.01 * (1 - epoch / 4) ** 0.9 for epoch in range(4)])
    assert rates[4:8] == rates[8:] == rates[:4]


# ----------------------------------------------------------------------------------------------------------------------
# The trainers


def weights_of(trainer: STTrainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in unwrap(trainer.network).state_dict().items()}


def stored_weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["network_weights"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("trainer_class", [STTrainer, SASTTrainer])
def test_a_whole_training(planned_dataset: Path, trainer_class: type[STTrainer], configuration: str) -> None:
    teacher = train_stock(planned_dataset, configuration)
    taught = teacher.read_bytes()
    if trainer_class is SASTTrainer:
        save_untrained_sean(configuration)
    trainer = make_trainer(trainer_class, planned_dataset, configuration, preview_every=1, seed=0,
                           pseudo_weight=0.4, synthetic_weight=0.7)
    trainer.initialize()
    before = weights_of(trainer)
    trainer.run_training()
    assert not same(before, weights_of(trainer))
    assert teacher.read_bytes() == taught, "the teacher never moves"

    log = trainer.epoch_log.read()
    assert [entry["epoch"] for entry in log] == [0, 1]
    for entry in log:
        assert entry["loss"] == pytest.approx(
            entry["loss_supervised"] + 0.4 * entry["loss_pseudo"] + 0.7 * entry["loss_synthetic"], abs=1e-5)
        assert (entry["loss_synthetic"] != 0) == (trainer_class is SASTTrainer)
    assert (Path(trainer.output_folder) / "previews" / "epoch_0002.png").exists()
    assert "WARNING: stock nnU-Net does not store" in Path(trainer.log_file).read_text()

    folder = trainer.pseudo_labels_folder()
    assert folder.parent.name == f"nnUNetPlans_{configuration}_pseudo"
    stored = sorted(path.stem for path in folder.glob("*.b2nd"))
    assert stored == trainer.experiment.pool_ids, "no validation or test case"
    assert json.loads(folder.with_suffix(".json").read_text())["teacher"] == str(teacher)


def test_the_students_target_is_what_the_teacher_said(planned_dataset: Path) -> None:
    train_stock(planned_dataset)
    trainer = make_trainer(STTrainer, planned_dataset, seed=0)
    trainer.on_train_start()
    seen = []

    def spying_loss(outputs: list[Tensor], target: list[Tensor]) -> Tensor:
        seen.append(target)
        return outputs[0].sum() * 0

    trainer.loss = spying_loss
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    assert len(seen) == 2 and torch.equal(seen[1][0], batch["target_u"].long())


def test_pseudo_labels_are_made_once(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_stock(planned_dataset)
    make_trainer(STTrainer, planned_dataset, seed=0).run_training()
    monkeypatch.setattr("nnunet_synth.trainers.teacher.Teacher.label", None)       # not asked again
    make_trainer(STTrainer, planned_dataset, seed=1).run_training()


def test_ranks_share_the_work(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_stock(planned_dataset)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    done = []
    for rank in range(2):
        trainer = make_trainer(STTrainer, planned_dataset)
        trainer.initialize()
        trainer.prepare_unlabelled()
        trainer.is_ddp, trainer.local_rank = True, rank
        trainer.label_unlabelled()
        done.append({path.stem for path in trainer.pseudo_labels_folder().glob("*.b2nd")})
    assert len(done[0]) == 2 and done[1] == set(trainer.experiment.pool_ids)


def test_after_sacps(planned_dataset: Path) -> None:
    """SA-ST(+SA-CPS)."""
    save_untrained_sean()
    peers = make_trainer(SACPSTrainer, planned_dataset, seed=0)
    peers.run_training()
    trainer = make_trainer(SASTTrainer, planned_dataset, seed=0, teacher="SACPSTrainer__nnUNetPlans__2d")
    trainer.run_training()
    facts = json.loads(trainer.pseudo_labels_folder().with_suffix(".json").read_text())
    assert facts["teacher"].endswith("SACPSTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth")
    assert "WARNING" not in Path(trainer.log_file).read_text().replace("WARNING: synthesizer", "")


def test_checkpoint_is_a_stock_model(planned_dataset: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    train_stock(planned_dataset)
    trainer = make_trainer(STTrainer, planned_dataset, seed=0, num_rounds=2)
    trainer.run_training()
    for name in ("checkpoint_round_1.pth", "checkpoint_final.pth"):
        checkpoint = torch.load(Path(trainer.output_folder) / name, weights_only=True)
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), name)
        assert same(predictor.list_of_parameters[0], checkpoint["network_weights"])


@WITH_REGIONS_OR_IGNORE
def test_regions_and_ignore_label(planned_dataset: Path, labels: dict, order: list | None, ignore: int | None) -> None:
    relabel(planned_dataset, labels, order, ignore)
    save_untrained_sean()
    train_stock(planned_dataset)
    trainer = make_trainer(SASTTrainer, planned_dataset, seed=0)
    trainer.run_training()
    assert trainer.label_manager.has_regions == (order is not None)
    assert math.isfinite(trainer.epoch_log.read()[-1]["loss"])
    stored = {int(label) for path in trainer.pseudo_labels_folder().glob("*.b2nd")
              for label in np.unique(open_map(path)[:])}
    assert stored <= {0, 1, 2} - {ignore}, "nobody is taught to ignore"


def test_lung_only_input_is_not_taught_what_lies_outside(planned_dataset: Path) -> None:
    train_stock(planned_dataset)
    trainer = make_trainer(STTrainer, planned_dataset, seed=0, mask_outside_layout=True)
    trainer.on_train_start()
    seen = []

    def spying_loss(outputs: list[Tensor], target: list[Tensor]) -> Tensor:
        seen.append(target[0])
        return outputs[0].sum() * 0

    trainer.loss = spying_loss
    batch = next(trainer.dataloader_train)
    batch["target_u"] = torch.ones_like(batch["target_u"])
    trainer.train_step(batch)
    layout = batch["data_u"][:, -3] > 0
    assert torch.equal(seen[1][:, 0] == 1, layout) and 0 < layout.float().mean() < 1


def test_hidden_labels_have_no_influence(planned_dataset: Path) -> None:
    fold, = split(DATASET_ID, 0, [2])
    train_stock(planned_dataset, fold=fold)
    hidden = load_experiment(DATASET_ID, "2d", fold).unlabelled_ids

    def train() -> STTrainer:
        trainer = make_trainer(STTrainer, planned_dataset, fold=fold, seed=3)
        trainer.run_training()
        return trainer

    expected = train()
    assert {*hidden, *expected.experiment.pool_ids} == set(expected.unlabelled_cases().identifiers)
    for case_id in hidden:
        relabel_case(planned_dataset, case_id)
    assert same(weights_of(expected), weights_of(train()))
    relabel_case(planned_dataset, expected.experiment.train_ids[0])         # negative control
    assert not same(weights_of(expected), weights_of(train()))


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_the_student_becomes_the_teacher(planned_dataset: Path) -> None:
    train_stock(planned_dataset)
    trainer = make_trainer(STTrainer, planned_dataset, seed=0, num_rounds=3, ramp_up_epochs=2)
    starts: dict[int, dict] = {}
    begin_epoch = trainer.on_train_epoch_start

    def on_train_epoch_start() -> None:
        begin_epoch()
        starts[trainer.current_epoch] = {"weights": weights_of(trainer), "key": trainer._teacher_key,
                                         "momentum": len(trainer.optimizer.state), "ramp": trainer.ramp()}

    trainer.on_train_epoch_start = on_train_epoch_start
    trainer.run_training()
    assert trainer.num_epochs == 6 and [entry["round"] for entry in trainer.epoch_log.read()] == [0, 0, 1, 1, 2, 2]
    assert len({starts[epoch]["key"] for epoch in (0, 2, 4)}) == 3 and starts[0]["key"] == starts[1]["key"]
    rates = trainer.logger.get_value("lrs", None)
    assert rates[:2] == rates[2:4] == rates[4:] and rates[0] > rates[1]

    folder = Path(trainer.output_folder)
    for number in (1, 2):
        finished, fresh = stored_weights(folder / f"checkpoint_round_{number}.pth"), starts[2 * number]
        assert fresh["momentum"] == 0 and fresh["ramp"] == starts[0]["ramp"] < starts[1]["ramp"]
        assert not same(finished, fresh["weights"]) and not same(starts[0]["weights"], fresh["weights"])
        facts = json.loads((trainer.pseudo_labels_folder().parent / f"{fresh['key']}.json").read_text())
        assert facts["teacher"] == str(folder / f"checkpoint_round_{number}.pth")
    assert not (folder / "checkpoint_round_3.pth").exists()
    assert torch.load(folder / "checkpoint_final.pth", weights_only=True)[OUR_KEY]["round"] == 2


def test_the_best_checkpoint_is_of_the_last_student(planned_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first student gets Dice 0.9, the second one 0.1: its moving average must not begin with the other's."""
    train_stock(planned_dataset)
    trainer = make_trainer(STTrainer, planned_dataset, seed=0, num_rounds=2)
    validate = trainer.validation_step

    def validation_step(batch: dict) -> dict:
        hits = 9 if trainer.current_epoch < 2 else 1
        return {**validate(batch), "tp_hard": np.array([hits]), "fp_hard": np.array([2 * (10 - hits)]),
                "fn_hard": np.array([0])}

    trainer.validation_step = validation_step
    trainer.run_training()
    assert trainer.logger.get_value("ema_fg_dice", None) == pytest.approx([0.9, 0.9, 0.1, 0.1])
    best = torch.load(Path(trainer.output_folder) / "checkpoint_best.pth", weights_only=True)
    assert best["current_epoch"] == 3 and best[OUR_KEY]["round"] == 1


@pytest.mark.parametrize(("trainer_class", "killed_in"), [(STTrainer, 1), (STTrainer, 3), (SASTTrainer, 3)])
def test_resume_is_bit_identical_inside_any_round(planned_dataset: Path, trainer_class: type[STTrainer],
                                                  killed_in: int) -> None:
    settings = {"num_rounds": 2, "save_every": 1, "seed": 7}
    train_stock(planned_dataset)
    save_untrained_sean()
    whole = make_trainer(trainer_class, planned_dataset, **settings)
    whole.run_training()
    train_until_killed(make_trainer(trainer_class, planned_dataset, **settings), num_epochs=killed_in)
    torch.manual_seed(99)       # whatever happened in between
    continued = resumed(trainer_class, planned_dataset, **settings)
    assert continued.current_epoch == killed_in and continued.round == killed_in // 2
    continued.run_training()
    assert_same_run(whole, continued)


def test_resume_where_the_next_teacher_was_still_labelling(planned_dataset: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two rounds, and with no checkpoint due: the finished student is kept, its first labels too."""
    settings = {"num_rounds": 2, "save_every": 50, "seed": 7}
    train_stock(planned_dataset)
    whole = make_trainer(STTrainer, planned_dataset, **settings)
    whole.run_training()
    second = whole.pseudo_labels_folder()
    for path in second.iterdir():
        path.unlink()

    from nnunet_synth.trainers.teacher import Teacher
    label, asked = Teacher.label, []

    def once(self: Teacher, *case: object) -> np.ndarray:
        if asked:
            raise KeyboardInterrupt
        asked.append(self)
        return label(self, *case)

    monkeypatch.setattr(Teacher, "label", once)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(STTrainer, planned_dataset, **settings).run_training()
    assert len(list(second.glob("*.b2nd"))) == 1, "the same student is the same teacher"
    monkeypatch.setattr(Teacher, "label", label)
    continued = resumed(STTrainer, planned_dataset, **settings)
    assert continued.current_epoch == 2 and continued.round == 0
    continued.run_training()
    assert_same_run(whole, continued)


def assert_same_run(whole: STTrainer, continued: STTrainer) -> None:
    assert same(weights_of(whole), weights_of(continued))
    for state, other in zip(whole.optimizer.state.values(), continued.optimizer.state.values(), strict=True):
        assert torch.equal(state["momentum_buffer"], other["momentum_buffer"])
    assert continued._teacher_key == whole._teacher_key
    assert [entry["round"] for entry in continued.epoch_log.read()] == [0, 0, 1, 1]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_no_teacher_names_the_line_to_run(planned_dataset: Path) -> None:
    with pytest.raises(UserError, match=r"no teacher at .*nnUNetv2_train 701 2d 0\)"):
        make_trainer(STTrainer, planned_dataset).run_training()


def test_no_synthesizer_is_told_before_the_teacher_labels(planned_dataset: Path) -> None:
    train_stock(planned_dataset)
    with pytest.raises(UserError, match="nnunet_synth pretrain 701 2d 0"):
        make_trainer(SASTTrainer, planned_dataset).run_training()
    assert not list(planned_dataset.glob("nnUNet_preprocessed/*/*_pseudo"))


def test_a_teacher_of_another_split_is_refused_before_it_labels(planned_dataset: Path) -> None:
    save_untrained_sean()
    make_trainer(SACPSTrainer, planned_dataset, seed=0, synthetic_weight=0.0).run_training()
    path = splits_file(load_experiment(DATASET_ID, "2d", 0).preprocessed_folder)
    splits = json.loads(path.read_text())
    splits[0]["train"], splits[0]["val"] = splits[0]["train"][1:] + splits[0]["val"][:1], \
        splits[0]["val"][1:] + splits[0]["train"][:1]
    path.write_text(json.dumps(splits))
    with pytest.raises(UserError, match="trained on another split than fold 0"):
        make_trainer(STTrainer, planned_dataset, teacher="SACPSTrainer__nnUNetPlans__2d").run_training()
    assert not list(planned_dataset.glob("nnUNet_preprocessed/*/*_pseudo"))
    with pytest.raises(UserError, match="trained on another split than fold 0 .* start again without --c"):
        resumed(SACPSTrainer, planned_dataset, "checkpoint_final.pth", synthetic_weight=0.0)


def test_a_run_goes_on_with_its_teacher_only(planned_dataset: Path) -> None:
    train_stock(planned_dataset)
    settings = {"save_every": 1, "seed": 0}
    train_until_killed(make_trainer(STTrainer, planned_dataset, **settings), num_epochs=1)
    train_stock(planned_dataset, seed=1)
    with pytest.raises(UserError, match="pseudo-labels [0-9a-f]{16} of another teacher"):
        resumed(STTrainer, planned_dataset, **settings).run_training()


def test_its_own_folder_is_no_teacher(planned_dataset: Path) -> None:
    train_stock(planned_dataset)
    make_trainer(STTrainer, planned_dataset).run_training()
    with pytest.raises(UserError, match="would be overwritten by its student.*num_rounds"):
        make_trainer(STTrainer, planned_dataset, teacher="STTrainer__nnUNetPlans__2d").run_training()


def test_rounds_need_checkpoints(planned_dataset: Path) -> None:
    train_stock(planned_dataset)
    trainer = make_trainer(STTrainer, planned_dataset, num_rounds=2)
    trainer.disable_checkpointing = True
    with pytest.raises(UserError, match="num_rounds above 1 needs checkpoints"):
        trainer.run_training()
