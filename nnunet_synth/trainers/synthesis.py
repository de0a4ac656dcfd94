"""The frozen synthesizer inside a training: found, checked, given its style pool, and asked once a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_synth.config import TrainerConfig
from nnunet_synth.data.experiment import Experiment
from nnunet_synth.data.intensity_augmentation import augment_intensity
from nnunet_synth.data.slices import FoldSlices
from nnunet_synth.errors import UserError
from nnunet_synth.selection.acceptance import AcceptanceGate, find_checkpoint, load_gate
from nnunet_synth.synthesizers.base import StyleOptions, Synthesizer, SynthRequest, SynthResult
from nnunet_synth.synthesizers.checkpoint import check_synthesizer_fits, load_synthesizer
from nnunet_synth.synthesizers.options import apply_drawing_options
from nnunet_synth.trainers.clock import Clock
from nnunet_synth.trainers.loss_terms import Synthesize

FEW_ACCEPTED = 0.1      # share of the synthetic images


@dataclass(frozen=True)
class UnlabelledBatch:
    """x_u and what travels with it.

    Attributes:
        image: [B, C, *sp], nnU-Net-normalised and augmented.
        layout, cluster: [B, *sp] int64.
        valid: [B, *sp] bool.
    """

    image: Tensor
    layout: Tensor
    cluster: Tensor
    valid: Tensor

    def repeated(self, times: int) -> UnlabelledBatch:
        """The same samples `times` times, one after another; copies, not views."""
        return UnlabelledBatch(*(torch.cat([part] * times)
                                 for part in (self.image, self.layout, self.cluster, self.valid)))


class Synthesis:
    """Draws x̂ for pseudo-labels (SA-CPS Eq. 1–3) from a synthesizer that never changes.

    Args:
        synthesizer: in eval mode, on the training device.
        seed: of its own random numbers; None = not seeded.
        ignore_axes: spatial axes along which the intensity augmentation of this plan does not blur.
        gate: which images are good enough; None = all are.
    """

    def __init__(self, synthesizer: Synthesizer, settings: TrainerConfig, device: torch.device, seed: int | None,
                 ignore_axes: tuple[int, ...] | None = None, gate: AcceptanceGate | None = None) -> None:
        self.synthesizer = synthesizer
        self.settings = settings
        self.ignore_axes = ignore_axes
        self.gate = gate
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self._clock = Clock(device)

    def __repr__(self) -> str:
        # nnU-Net writes attributes into debug.json: neither weights nor paths belong there.
        return f"Synthesis({self.synthesizer.name})"

    @classmethod
    def load(cls, experiment: Experiment, settings: TrainerConfig, device: torch.device, seed: int | None,
             ignore_axes: tuple[int, ...] | None = None) -> tuple[Synthesis, list[str]]:
        """The synthesizer of this fold, with its style pool; and warnings to print.

        Raises:
            UserError: there is none (the line to run is named), it does not fit this dataset, plans or fold, or its
                images are to be filtered and nnunet_synth select has not seen it.
        """
        folder = find_synthesizer_folder(experiment, settings)
        synthesizer = load_synthesizer(folder, device)
        warnings = check_synthesizer_fits(
            synthesizer.meta, semantic=experiment.semantic, channel_names=experiment.channel_names,
            plans_sha256=experiment.plans_sha256, val_ids=experiment.val_ids, test_ids=experiment.test_ids,
            patch_size=experiment.configuration_manager.patch_size,
            spacing=experiment.configuration_manager.spacing, pretrain_command=pretrain_command(experiment, settings))
        gate = None
        if settings.synthetic_accept_threshold is not None:
            gate = load_gate(folder, synthesizer.meta, settings.synthetic_accept_threshold, device,
                             select_command(experiment, settings))
            warnings += [*_other_size(gate, experiment), *_rejects_nearly_all(gate)]
        drawing, misfits = drawing_options(synthesizer, settings.synthesizer_options)
        apply_drawing_options(synthesizer, drawing)
        warnings += misfits
        synthesizer.style = style_options(settings)
        synthesizer.label_source = settings.label_source
        synthesizer.check_label_source()
        synthesizer.fit_pool(FoldSlices(experiment, experiment.train_ids))
        return cls(synthesizer, settings, device, seed, ignore_axes, gate), warnings

    def draw(self, labels: Tensor, batch: UnlabelledBatch) -> SynthResult:
        """One call for all label sets of a step.

        Args:
            labels: [N·B, *sp] int64, N label sets for the same unlabelled batch, one after another: cat([y2, y1]) of
                two peers, y of one student.
        """
        self._clock.start()
        request = batch.repeated(len(labels) // len(batch.image))
        self.synthesizer.begin_step(self.generator)
        result = self.synthesizer.synthesize(SynthRequest(
            label=labels, image=request.image, layout=request.layout, cluster=request.cluster, valid=request.valid,
            generator=self.generator))
        if self.gate is not None:
            result = self._filtered(result, request.valid)
        if self.settings.augment_synthetic == "intensity":
            # Otherwise the networks could tell synthetic images by their cleanliness.
            augmented = augment_intensity(result.image, self.generator, self.ignore_axes)
            # What lies outside the scan came, augmented as it is, from the unlabelled image: left alone.
            augmented = torch.where(request.valid[:, None], augmented, result.image)
            result = replace(result, image=augmented)
        self._clock.stop()
        return result

    @property
    def seconds(self) -> float:
        """Spent in the last draw."""
        return self._clock.seconds

    def _filtered(self, result: SynthResult, valid: Tensor) -> SynthResult:
        """LcGAN's acceptance: what hardly looks real is not learnt from. Judged as drawn, before any augmentation."""
        accepted = self.gate.accepts(result.image, valid)
        return replace(result, ok=result.ok & accepted, aux={**result.aux, "rejected": result.ok & ~accepted})

    def state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "pool": self.synthesizer.pool_definition(),
                "synthesizer": self.synthesizer.name, "gate": self._gate_facts, "drawing": self._drawing}

    @property
    def _drawing(self) -> dict[str, Any]:
        """How it draws, where that can differ from how it was trained."""
        return {key: getattr(self.synthesizer.config, key) for key in self.synthesizer.drawing_options}

    @property
    def _gate_facts(self) -> dict[str, Any] | None:
        return None if self.gate is None else self.gate.facts

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises UserError when the run was made with another synthesizer, style pool or filter of images."""
        now = (self.synthesizer.name, self.synthesizer.pool_definition())
        if (state["synthesizer"], state["pool"]) != now:
            raise UserError(f"the run was made with synthesizer {state['synthesizer']} and style pool {state['pool']}, "
                            f"now they are {now[0]} and {now[1]}: restore them, or start again without --c")
        if state.get("gate") != self._gate_facts:
            raise UserError(f"the run was made with the filter of synthetic images {state.get('gate')}, now it is "
                            f"{self._gate_facts}: restore it, or start again without --c")
        if state.get("drawing", self._drawing) != self._drawing:
            raise UserError(f"the run was made with synthesizer_options {state['drawing']}, now they are "
                            f"{self._drawing}: restore them, or start again without --c")
        self.generator.set_state(state["generator"].cpu())


class DrawsSynthetic:
    """Mixin of semi-supervised trainers: a synthesizer draws images for the labels of the unlabelled batch.

    It has no use where `synthetic_weight` is 0, and is not looked for then.
    """

    synthesis: Synthesis | None = None
    _synthesis_to_restore: dict[str, Any] | None = None

    def prepare_training(self) -> None:
        if self.settings.synthetic_weight > 0:
            self._load_synthesis()
        super().prepare_training()      # may take long: whether there is a synthesizer is known by now

    def _load_synthesis(self) -> None:
        seed = None if self.settings.seed is None else self.settings.seed + self.local_rank
        _, dummy_2d, _, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.synthesis, warnings = Synthesis.load(self.experiment, self.settings, self.device, seed,
                                                  ignore_axes=(0,) if dummy_2d else None)
        for warning in warnings:
            self.print_to_log_file(f"WARNING: {warning}")
        if self._synthesis_to_restore is not None:
            self.synthesis.load_state(self._synthesis_to_restore)

    def extra_state(self) -> dict[str, Any]:
        state = super().extra_state()
        return {**state, "synthesis": self.synthesis.state()} if self.synthesis is not None else state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._synthesis_to_restore = state.get("synthesis")

    def synthesizer_for(self, unlabelled: UnlabelledBatch) -> Synthesize | None:
        if self.synthesis is None:
            return None

        def synthesize(labels: Tensor) -> SynthResult:
            drawn = self.synthesis.draw(labels, unlabelled)
            layout = unlabelled.repeated(len(labels) // len(unlabelled.image)).layout
            return SynthResult(self.mask_outside(drawn.image, layout), drawn.label, drawn.ok, drawn.aux)

        return synthesize

    def scalars(self, results: dict[str, Any]) -> dict[str, np.ndarray]:
        values = super().scalars(results)
        if self.synthesis is not None:
            drawn = results["synthetic"]
            values["synthetic_used"] = drawn.ok.float().mean().cpu().numpy()
            if "rejected" in drawn.aux:
                values["synthetic_rejected"] = drawn.aux["rejected"].float().mean().cpu().numpy()
            values["seconds_synthesis"] = np.array(self.synthesis.seconds)
        return values


def style_options(settings: TrainerConfig) -> StyleOptions:
    """Where a training takes styles from."""
    return StyleOptions(settings.num_styles, settings.style_source, settings.style_average)


def drawing_options(synthesizer: Synthesizer, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of a configuration's `synthesizer_options`, those that can be changed after training; and a warning that names
    the others which were pretrained with another value."""
    now = {key: value for key, value in options.items() if key in synthesizer.drawing_options}
    trained = json.loads(json.dumps(asdict(synthesizer.config)))
    others = sorted(key for key, value in options.items() if key not in now and trained.get(key) != value)
    if not others:
        return now, []
    return now, [f"the synthesizer was not pretrained with {', '.join(f'{key}={options[key]}' for key in others)} of "
                 "synthesizer_options, and draws as it was trained: pretrain it again to have them"]


def find_synthesizer_folder(experiment: Experiment, settings: TrainerConfig) -> Path:
    """The synthesizer pretrained for this fold: under this configuration, or along its `inherits_from` chain; of its
    models the one that `synthesizer_checkpoint` names."""
    if settings.synthesizer_from is not None:
        folders = [Path(settings.synthesizer_from)]
    else:
        folders = [experiment.synthesizer_folder(settings.synthesizer, configuration)
                   for configuration in experiment.configuration_chain()]
    for folder in folders:
        if (folder / "meta.json").exists():
            return find_checkpoint(folder, settings.synthesizer_checkpoint, select_command(experiment, settings))
    raise UserError(f"no synthesizer at {' or '.join(map(str, folders))}: first run "
                    f"{pretrain_command(experiment, settings)}")


def pretrain_command(experiment: Experiment, settings: TrainerConfig) -> str:
    """The line that trains the missing synthesizer, under the configuration that others can inherit it from."""
    parts = ["nnunet_synth pretrain", experiment.dataset_name[7:10], experiment.configuration_chain()[-1],
             str(experiment.fold), "--synthesizer", settings.synthesizer]
    if settings.synthesizer_preset != "default":
        parts += ["--preset", settings.synthesizer_preset]
    if experiment.plans_name != "nnUNetPlans":
        parts += ["-p", experiment.plans_name]
    parts += [f"--option {key}={value}" for key, value in settings.synthesizer_options.items()]
    return " ".join(parts)


def select_command(experiment: Experiment, settings: TrainerConfig) -> str:
    """The line that ranks the models of this synthesizer and trains the filter of its images."""
    plans = "" if experiment.plans_name == "nnUNetPlans" else f" -p {experiment.plans_name}"
    return (f"nnunet_synth select {experiment.dataset_name[7:10]} {experiment.configuration} {experiment.fold} "
            f"--synthesizer {settings.synthesizer}{plans}")


def _other_size(gate: AcceptanceGate, experiment: Experiment) -> list[str]:
    """A warning where the filter learnt from images of another size than it will see."""
    learnt, wanted = gate.record.patch_size, list(experiment.configuration_manager.patch_size)[-2:]
    if learnt == wanted:
        return []
    return [f"the classifier of synthetic_accept_threshold learnt from images of {learnt} pixels and will judge "
            f"{wanted}: run nnunet_synth select under the configuration {experiment.configuration}"]


def _rejects_nearly_all(gate: AcceptanceGate) -> list[str]:
    """A warning where hardly a synthetic image will be learnt from."""
    if gate.acceptance is None or gate.acceptance >= FEW_ACCEPTED:
        return []
    return [f"nnunet_synth select accepted {gate.acceptance:.0%} of this synthesizer's images at P(real) ≥ "
            f"{gate.record.threshold:g}, so synthetic_accept_threshold will leave hardly any to learn from: pretrain "
            "it longer, or lower the threshold"]
