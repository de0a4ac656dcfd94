"""The one GAN training loop: it runs the stages of any synthesizer, or mask source, one after another and knows no
method.

Every step is a function of the weights, the optimizers and (seed, stage, step) alone: the random numbers of a step are
seeded by its number. So a resumed run continues exactly, on the CPU bit by bit, without any generator's state on disk,
and pictures drawn on the way change nothing.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_synth.atomic import write_text
from nnunet_synth.errors import UserError
from nnunet_synth.kept_aside import keep_aside
from nnunet_synth.mixed_precision import autocast
from nnunet_synth.progress import progress
from nnunet_synth.synthesizers.base import Batch, Slices, SliceSource, Stage, Synthesizer, SynthMeta, Trainable
from nnunet_synth.synthesizers.checkpoint import (
    kept_checkpoint,
    load_train_state,
    save_synthesizer,
    save_train_state,
)
from nnunet_synth.synthesizers.ema import ExponentialMovingAverage, reestimate_batch_norm
from nnunet_synth.synthesizers.gallery import overlay, to_gray, write_curves, write_gallery

LOG_FILE = "log.jsonl"
CURVES_FILE = "progress.png"
MAX_SKIPPED_IN_A_ROW = 20
SUSPICIOUS_ACCURACY, SUSPICIOUS_STEPS = 0.97, 500
NUM_STATISTICS_IMAGES = 64      # images from which batch statistics are re-estimated
NUM_GALLERY_ROWS = 6

# What is added to (seed, stage, step) so that different uses draw different numbers.
_DATA, _STEP, _STATISTICS, _GALLERY = range(4)


def pretrain(synthesizer: Trainable, slices: SliceSource, folder: str | Path, *, device: torch.device | str = "cpu",
             steps: int | None = None, batch_size: int | None = None, seed: int = 0, resume: bool = False,
             perceptual: nn.Module | None = None, log_every: int = 10, samples_every: int = 500,
             checkpoint_every: int = 1000, gallery: Callable[[Trainable, Slices, Path, int], None] | None = None
             ) -> Trainable:
    """Train all stages and leave a checkpoint folder.

    Args:
        synthesizer: untrained; trained in place.
        slices: where the stages sample from.
        folder: gets `model.safetensors`, `meta.json`, `train_state.pt`, `log.jsonl`, `progress.png`, `samples/`, and
            `checkpoints/` of stages that keep earlier models.
        steps: number of generator steps over all stages, None = the preset's.
        batch_size: of every stage, None = the preset's.
        resume: continue from `train_state.pt`.
        perceptual: maps images in [-1, 1] to a list of feature maps; None = no perceptual loss.
        log_every, samples_every, checkpoint_every: steps between log lines, galleries, checkpoints.
        gallery: writes the pictures on the way, given what is trained (with averaged weights), a few slices, a file
            and a seed; None = `draw_gallery`.

    Returns:
        The synthesizer with averaged weights, in eval mode.

    Raises:
        UserError: nothing to resume, a resumed run differs in its settings, or 20 steps in a row were not finite.
        KeyboardInterrupt: after SIGINT or SIGTERM, once the step is done and a checkpoint is written.
    """
    folder, device = Path(folder), torch.device(device)
    synthesizer.prepare_training(slices)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    synthesizer.to(device)
    if perceptual is not None:
        perceptual.to(device).eval().requires_grad_(False)
    if device.type == "cuda":
        synthesizer.to(memory_format=torch.channels_last)

    with torch.random.fork_rng([device] if device.type == "cuda" else []), _frozen(synthesizer), \
            _interruption() as interrupted:
        torch.manual_seed(seed)
        stages = synthesizer.stages(steps, perceptual)
        for stage in stages:
            stage.batch_size = batch_size or stage.batch_size
        settings = _settings(synthesizer.meta, seed, stages)
        state = load_train_state(folder) if resume else {"settings": settings, "stage": 0, "step": 0}
        if state["settings"] != settings:
            raise UserError(_difference(state["settings"], settings))
        if resume:
            synthesizer.load_state_dict(state["synthesizer"])
        log = _Log(folder, [stage.name for stage in stages], state["stage"], state["step"])
        conditions = slices.sample(NUM_GALLERY_ROWS, tuple(synthesizer.meta.patch_size), _numpy_rng(seed, _GALLERY))

        for index in range(state["stage"], len(stages)):
            run = _StageRun(synthesizer, stages[index], index, slices, seed, device)
            first_step = state["step"] if index == state["stage"] else 0
            if first_step:
                run.load_state_dict(state["run"])

            def snapshot(step: int, run: _StageRun = run, index: int = index) -> None:
                save_train_state({"settings": settings, "stage": index, "step": step, "run": run.state_dict(),
                                  "synthesizer": synthesizer.state_dict()}, folder)
                with run.averaged(step):
                    _save_model(synthesizer, _steps_before(stages, index) + step, folder)

            for step in run.train(first_step, log, log_every):
                is_last = step == run.stage.num_steps
                if step % samples_every == 0 or is_last:
                    with run.averaged(step):
                        name = f"step_{_steps_before(stages, index) + step:06d}.png"
                        (gallery or draw_gallery)(synthesizer, conditions, folder / "samples" / name, seed)
                    log.draw()
                if step in run.kept_steps:
                    with run.averaged(step):
                        _keep_model(synthesizer, _steps_before(stages, index) + step, folder)
                if (step % checkpoint_every == 0 or interrupted.is_set()) and not is_last:
                    snapshot(step)
                if interrupted.is_set() and not is_last:
                    raise KeyboardInterrupt

            run.finish()
            done = _steps_before(stages, index + 1)
            save_train_state({"settings": settings, "stage": index + 1, "step": 0, "run": {},
                              "synthesizer": synthesizer.state_dict()}, folder)
            _save_model(synthesizer, done, folder)
            if interrupted.is_set():
                raise KeyboardInterrupt
    return synthesizer.eval()


# ----------------------------------------------------------------------------------------------------------------------
# One stage


class _StageRun:
    """One stage with its optimizers and its averaged weights."""

    def __init__(self, synthesizer: Trainable, stage: Stage, index: int, slices: SliceSource, seed: int,
                 device: torch.device) -> None:
        self.synthesizer, self.stage, self.index = synthesizer, stage, index
        self.slices, self.seed, self.device = slices, seed, device
        self.generator_optimizer = self._optimizer(stage.generator)
        self.discriminator_optimizer = None
        if stage.discriminator is not None:
            stage.discriminator.to(device)
            self.discriminator_optimizer = self._optimizer(stage.discriminator)
        self.ema = ExponentialMovingAverage(stage.generator)
        # After the last step the model stays on disk anyway.
        self.kept_steps = {round(share * stage.num_steps) for share in stage.kept_shares} - {stage.num_steps}
        self.skipped = 0                # steps skipped since the stage began, and in a row
        self.skipped_in_a_row = 0

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), betas=self.stage.betas, fused=self.device.type == "cuda")

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self, first_step: int, log: _Log, log_every: int) -> Iterator[int]:
        """Run the remaining steps; yields how many are done after each."""
        self._train_mode()
        numbers = range(first_step, self.stage.num_steps)
        name = f"{self.synthesizer.name}: stage {self.stage.name}"
        for step, batch in zip(progress(numbers, name, self.stage.num_steps, first_step), self._batches(numbers),
                               strict=True):
            terms = self.step(step, batch)
            log.collect(terms)
            if (step + 1) % log_every == 0 or step + 1 == self.stage.num_steps:
                log.write(self.stage.name, step + 1, self.skipped, self.stage.learning_rates(step))
            yield step + 1

    def step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """One step of the generator and one of the discriminator, or of neither where a loss is not finite."""
        stage = self.stage
        torch.manual_seed(_torch_seed(self.seed, _STEP, self.index, step))
        batch = _to_device(batch, self.device)
        stage.begin_step(step)
        for optimizer, learning_rate in zip((self.generator_optimizer, self.discriminator_optimizer),
                                            stage.learning_rates(step), strict=True):
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = learning_rate

        stage.generator.requires_grad_(True)
        if stage.discriminator is not None:
            stage.discriminator.requires_grad_(False)
        with self._autocast():
            loss, terms = stage.generator_loss(batch)
        logged = {"generator": loss.detach(), **terms}
        is_finite = _descend(loss, self.generator_optimizer)
        if is_finite and stage.discriminator is not None:
            stage.discriminator.requires_grad_(True)
            with self._autocast():
                loss, terms = stage.discriminator_loss(batch)
            logged |= {"discriminator": loss.detach(), **terms}
            is_finite = _descend(loss, self.discriminator_optimizer)
        self._count(is_finite, step)
        if not is_finite:
            return {}
        self.ema.update(step)
        return logged

    def _batches(self, steps: range) -> Iterator[Batch]:
        """Mini-batches in order; the next one is prepared in a thread while the device works on this one."""
        def draw(step: int) -> Batch:
            return self.stage.sample(self.slices, _numpy_rng(self.seed, _DATA, self.index, step))

        with ThreadPoolExecutor(max_workers=1) as thread:
            upcoming = thread.submit(draw, steps.start) if steps else None
            for step in steps:
                batch = upcoming.result()
                if step + 1 < steps.stop:
                    upcoming = thread.submit(draw, step + 1)
                yield batch

    def _count(self, is_finite: bool, step: int) -> None:
        self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
        self.skipped += not is_finite
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise UserError(f"training of {self.synthesizer.name} diverged: the losses of {MAX_SKIPPED_IN_A_ROW} steps "
                            f"in a row, up to step {step + 1} of stage {self.stage.name}, were not finite; check the "
                            "images for NaN, or train with --perceptual off or another --seed")

    def _autocast(self) -> AbstractContextManager:
        # bf16, not fp16: GANs with batch or instance norm overflow fp16. On the CPU it would only be slower.
        return autocast(self.device, torch.bfloat16)

    def _train_mode(self) -> None:
        """What this stage trains is in train mode; all else of the synthesizer is frozen and in eval mode."""
        self.synthesizer.eval()
        self.stage.generator.train()
        if self.stage.discriminator is not None:
            self.stage.discriminator.train()

    # -- averaged weights --------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self, step: int) -> Iterator[None]:
        """The synthesizer with averaged weights and their batch statistics, in eval mode; training goes on after."""
        with self.ema.in_place():
            self._reestimate(step)
            self.synthesizer.eval()
            yield
        self._train_mode()

    def finish(self) -> None:
        """The averaged weights stay."""
        self.ema.put_in_place()
        self._reestimate(self.stage.num_steps)
        self.synthesizer.eval()
        self.stage.generator.requires_grad_(False)
        self.stage.on_end()

    def _reestimate(self, step: int) -> None:
        self._train_mode()
        discriminator = self.stage.discriminator
        if discriminator is not None:
            discriminator.eval()        # its spectral norm must not move
        torch.manual_seed(_torch_seed(self.seed, _STATISTICS, self.index, step))

        def forward(batch: Batch) -> None:
            with self._autocast():
                self.stage.generator_loss(_to_device(batch, self.device))

        rng = _numpy_rng(self.seed, _STATISTICS, self.index, step)
        num_batches = -(-NUM_STATISTICS_IMAGES // self.stage.batch_size)
        reestimate_batch_norm(self.stage.generator, (self.stage.sample(self.slices, rng) for _ in range(num_batches)),
                              forward)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        has_discriminator = self.stage.discriminator is not None
        return {"ema": self.ema.state_dict(), "generator_optimizer": self.generator_optimizer.state_dict(),
                "discriminator": self.stage.discriminator.state_dict() if has_discriminator else {},
                "discriminator_optimizer": self.discriminator_optimizer.state_dict() if has_discriminator else {},
                "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state["ema"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        if self.stage.discriminator is not None:
            self.stage.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> bool:
    """One step down the gradient; nothing changes and False is returned where loss or gradient is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]
                 if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients])
    # note: this is a CPU-GPU sync point, one per network and step.
    is_finite = bool(torch.isfinite(norms).all() & torch.isfinite(loss.detach()))
    if is_finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return is_finite


# ----------------------------------------------------------------------------------------------------------------------
# What the run shows


@torch.no_grad()
def draw_gallery(synthesizer: Synthesizer, conditions: Slices, target: Path, seed: int = 0) -> None:
    """PNG of real | label | synthetic, drawn with each slice's own style: the same slices and noise each time."""
    device = next(synthesizer.parameters()).device
    on_device = conditions.to(device)
    generator = torch.Generator(device).manual_seed(_torch_seed(seed, _GALLERY))
    style = synthesizer.style
    synthesizer.style = replace(style, source="self")
    try:
        synthesizer.begin_step(generator)
        drawn = synthesizer.synthesize(on_device.request(generator)).image
    finally:
        synthesizer.style = style
    real, synthetic = (synthesizer.to_unit(image).where(on_device.valid[:, None], -1).cpu().numpy()
                       for image in (on_device.image, drawn))
    classes = synthesizer.meta.semantic.combine(conditions.label, conditions.layout).numpy()
    write_gallery([(to_gray(x), overlay(to_gray(x), c), to_gray(y))
                   for x, c, y in zip(real, classes, synthetic, strict=True)],
                  ("real", "label", "synthetic"), target)


class _Log:
    """`log.jsonl`: one line for every few steps, the mean of each term over them."""

    def __init__(self, folder: Path, stages: list[str], stage: int, step: int) -> None:
        self.path = folder / LOG_FILE
        self.curves = folder / CURVES_FILE
        if (stage, step) == (0, 0):
            keep_aside(self.path)           # of a run that was stopped before its first checkpoint
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else None
        # A killed run may leave half a line; what was logged after the checkpoint will be logged again.
        entries = [json.loads(line) for line in (before or "").splitlines() if line.endswith("}")]
        self.entries = [entry for entry in entries if entry["stage"] in stages[:stage]
                        or (entry["stage"] in stages[stage:stage + 1] and entry["step"] <= step)]
        text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        if text != before:
            write_text(text, self.path)
        self.pending: list[dict[str, Tensor]] = []
        self.since = time.monotonic()
        self.suspicious_steps = 0

    def collect(self, terms: dict[str, Tensor]) -> None:
        self.pending.append(terms)

    def write(self, stage: str, step: int, skipped: int, learning_rates: tuple[float, float]) -> None:
        keys = dict.fromkeys(key for terms in self.pending for key in terms)
        means = {key: torch.stack([terms[key].float() for terms in self.pending if key in terms]).mean().item()
                 for key in keys}
        now = time.monotonic()
        entry = {"stage": stage, "step": step, **means, "skipped": skipped,
                 "learning rate of generator": learning_rates[0],
                 "learning rate of discriminator": learning_rates[1],
                 "seconds_per_step": (now - self.since) / len(self.pending)}
        self._watch(max((means[key] for key in keys if key.endswith("discriminator_accuracy")), default=0.0), step)
        self.entries.append(entry)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.pending, self.since = [], now

    def draw(self) -> None:
        if self.entries:
            write_curves(self.entries, self.curves)

    def _watch(self, accuracy: float, step: int) -> None:
        before = self.suspicious_steps
        self.suspicious_steps = before + len(self.pending) if accuracy > SUSPICIOUS_ACCURACY else 0
        if before < SUSPICIOUS_STEPS <= self.suspicious_steps:
            print(f"warning: step {step}: a discriminator has been right in more than {SUSPICIOUS_ACCURACY:.0%} of "
                  f"its decisions for {SUSPICIOUS_STEPS} steps; the generator may learn nothing from it any more",
                  file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------------------
# Small parts


def _save_model(synthesizer: Trainable, steps_done: int, folder: Path) -> None:
    synthesizer.meta = replace(synthesizer.meta, steps=steps_done)
    save_synthesizer(synthesizer, folder)


def _keep_model(synthesizer: Trainable, steps_done: int, folder: Path) -> None:
    """Beside the checkpoint that the next one replaces."""
    meta = synthesizer.meta
    synthesizer.meta = replace(meta, steps=steps_done).with_metrics(kept=True)
    save_synthesizer(synthesizer, kept_checkpoint(folder, steps_done))
    synthesizer.meta = meta


def _steps_before(stages: list[Stage], index: int) -> int:
    return sum(stage.num_steps for stage in stages[:index])


def _to_device(batch: Batch, device: torch.device) -> Batch:
    def move(tensor: Tensor) -> Tensor:
        is_image = tensor.ndim == 4 and device.type == "cuda"
        return tensor.to(device, memory_format=torch.channels_last if is_image else torch.preserve_format)

    return {name: move(tensor) for name, tensor in batch.items()}


def _numpy_rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, *key])


def _torch_seed(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0] >> 1)


def _settings(meta: SynthMeta, seed: int, stages: list[Stage]) -> dict[str, Any]:
    """All that must be the same when a run is continued, so that one synthesizer is one training."""
    return {"seed": seed, "stages": [[stage.name, stage.num_steps, stage.batch_size] for stage in stages],
            "config": json.dumps(meta.config, sort_keys=True), "perceptual": meta.perceptual,
            "patch_size": list(meta.patch_size), "training cases": list(meta.train_case_ids),
            "normalisation": meta.plans_sha256, "classes": list(meta.semantic.names),
            **({"montage": list(meta.montage)} if meta.montage else {})}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    def shortened(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 100 else f"{text[:97]}..."

    parts = [f"{key} was {shortened(before.get(key))}, is {shortened(now.get(key))}" for key in {**now, **before}
             if before.get(key) != now.get(key)]
    return f"cannot continue with other settings ({'; '.join(parts)}): repeat them, or start again with --force"


@contextmanager
def _frozen(synthesizer: Trainable) -> Iterator[None]:
    """No parameter asks for gradients unless a stage says so; afterwards each is as it was."""
    before = [(parameter, parameter.requires_grad) for parameter in synthesizer.parameters()]
    synthesizer.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that SIGINT (Ctrl-C) or SIGTERM (job schedulers) sets, so that a step is never cut in two.

    The second signal interrupts at once.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        print("finishing this step and writing a checkpoint; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
