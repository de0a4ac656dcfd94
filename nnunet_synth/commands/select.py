"""Which model of which synthesizer is good enough to train with? Every checkpoint of a fold by LcGAN's three criteria.

Every model draws images for the same labels of labelled training slices, at the patch size of the configuration. They
are ranked by
  FCN score    Dice of the fold's own trained network on the synthetic images, background ignored (--segmenter),
  sharpness    variance of the Laplacian, compared with the real images,
  acceptance   the share of images that a network, trained on the spot, takes for real with P >= 0.1.
Validation cases are never looked at.

Writes report.html, ranking.csv, ranking.json and galleries/ into nnU-Net's results folder (selection__PLANS__CONFIG),
and beside each synthesizer the classifier that the setting synthetic_accept_threshold of SA-CPS and SA-ST filters with,
and which of its checkpoints is best (setting synthesizer_checkpoint). Run it again when a synthesizer was trained anew.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synth.argument_types import real, whole
from nnunet_synth.bounds import FRACTION, IMAGES, SEED, STEPS
from nnunet_synth.errors import UserError

if TYPE_CHECKING:
    from nnunet_synth.data.experiment import Experiment
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.selection.candidates import Candidate
    from nnunet_synth.selection.judging import Draw
    from nnunet_synth.selection.report import Selection

EXAMPLE = "nnunet_synth select 501 2d 0 --segmenter nnUNetTrainer__nnUNetPlans__2d"

NO_SEGMENTER = "none"
SMALLEST_PATCH = 32     # pixels: what the classifiers take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the dataset")
    parser.add_argument("configuration", metavar="CONFIG", help="configuration that will be trained, e.g. 2d")
    parser.add_argument("fold", metavar="FOLD", help="fold that the synthesizers were trained on")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--synthesizer", nargs="+", default=[], metavar="NAME", dest="synthesizers",
                        help="registered names (default: all that were trained for this fold)")
    parser.add_argument("--segmenter", default=None, metavar="TRAINER__PLANS__CONFIG",
                        help="results folder of a network trained on this fold; none = rank without the FCN score "
                             "(default: nnUNetTrainer of this configuration)")
    parser.add_argument("-n", type=whole(IMAGES), default=200, dest="number", metavar="N",
                        help="images of each model (default: %(default)s)")
    parser.add_argument("--accept-threshold", type=real(FRACTION), default=0.1, metavar="P",
                        help="lowest probability of being real of an accepted image (default: %(default)s)")
    parser.add_argument("--classifier", default="googlenet",
                        help="googlenet (the paper's), resnet18 or inception_v3 (default: %(default)s)")
    parser.add_argument("--classifier-steps", type=whole(STEPS), default=500,
                        help="of its training (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--seed", type=whole(SEED), default=0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    select(**{name: value for name, value in vars(args).items() if name not in ("verb", "run")})


def select(dataset: str | int, configuration: str, fold: int | str, *, synthesizers: Sequence[str] = (),
           segmenter: str | None = None, number: int = 200, accept_threshold: float = 0.1,
           classifier: str = "googlenet", classifier_steps: int = 500, plans: str = "nnUNetPlans",
           device: str | None = None, seed: int = 0) -> Selection:
    """Do what this module's docstring says; returns all results.

    Raises:
        UserError: a mistake in the arguments, no or unfitting synthesizers, or no segmenter.
    """
    from functools import partial

    from nnunet_synth.commands.pretrain import find_device
    from nnunet_synth.data.experiment import load_experiment
    from nnunet_synth.data.intensities import intensity_range
    from nnunet_synth.data.slices import FoldSlices
    from nnunet_synth.lock import only_writer
    from nnunet_synth.quality.classifier import ClassifierOptions
    from nnunet_synth.selection.acceptance import to_unit
    from nnunet_synth.selection.candidates import find_candidates
    from nnunet_synth.selection.judging import Judge, lesion_conditions, real
    from nnunet_synth.selection.ranking import rank, train_acceptance
    from nnunet_synth.selection.report import Selection, summary, write_selection
    from nnunet_synth.selection.segmenter import load_segmenter

    if not 0 <= accept_threshold <= 1:
        raise UserError(f"--accept-threshold {accept_threshold:g}: a probability lies between 0 and 1")
    if number < 4:
        raise UserError(f"-n {number}: give at least 4, of which some are learnt from and some are judged")
    options = ClassifierOptions(classifier, classifier_steps, resolution=None, seed=seed)
    used_device = find_device(device)
    experiment = load_experiment(dataset, configuration, fold, plans)
    patch_size = tuple(experiment.configuration_manager.patch_size[-2:])
    if min(patch_size) < SMALLEST_PATCH:
        raise UserError(f"patches of {configuration} have {patch_size[0]} × {patch_size[1]} pixels: the classifier "
                        f"needs {SMALLEST_PATCH} or more a side")
    candidates, warnings = find_candidates(experiment, synthesizers)
    for warning in warnings:
        print(f"warning: {warning}")
    network = None if segmenter == NO_SEGMENTER else load_segmenter(experiment, segmenter, used_device)

    folder = experiment.synthesizer_folder("selection")
    with only_writer(folder):
        slices = FoldSlices(experiment)
        bounds = intensity_range(experiment, slices)
        lesions = slices.target_labels
        judge = Judge(partial(lesion_conditions, slices, lesions, patch_size, number, seed), number, network, lesions,
                      experiment.semantic, partial(to_unit, intensity_range=bounds))
        with tempfile.TemporaryDirectory(prefix="nnunet_synth_select_") as scratch:
            reference = judge.look_at("real", real, Path(scratch) / "real")
            drawn = [judge.look_at(candidate.name, _drawer(candidate, experiment, slices, used_device, seed),
                                   Path(scratch) / str(place)) for place, candidate in enumerate(candidates)]
            trained = train_acceptance(reference, drawn, bounds, options, used_device)
            score_of_real, scores = rank(reference, drawn, number, accept_threshold)
            facts = {"dataset": experiment.dataset_name, "configuration": configuration, "fold": experiment.fold,
                     "plans": plans, "segmenter": NO_SEGMENTER if network is None else network.description,
                     "images of each": number, "pixels": list(patch_size), "seed": seed, "classifier": classifier,
                     "steps of the classifier": classifier_steps}
            found = Selection({candidate.name: candidate for candidate in candidates}, score_of_real, scores,
                              {one.name: one for one in [reference, *drawn]}, trained, accept_threshold, facts)
            page = write_selection(found, folder)
        for home in dict.fromkeys(candidate.home for candidate in candidates):
            _leave_classifier(home, found, experiment, bounds, patch_size)
    print(summary(found))
    print(f"The report: {page}")
    return found


def _drawer(candidate: Candidate, experiment: Experiment, slices: FoldSlices, device: str, seed: int) -> Draw:
    """A model with its style pool, as the trainers of this configuration would have it."""
    from nnunet_synth.config import TrainerConfig
    from nnunet_synth.selection.judging import drawing
    from nnunet_synth.synthesizers.checkpoint import load_synthesizer
    from nnunet_synth.trainers.synthesis import style_options
    settings = TrainerConfig.from_plans_configuration(
        experiment.configuration_manager.configuration.get("nnunet_synth", {}))
    synthesizer = load_synthesizer(candidate.folder, device)
    synthesizer.style = style_options(settings)
    synthesizer.fit_pool(slices)
    return drawing(synthesizer, seed)


def _leave_classifier(home: Path, found: Selection, experiment: Experiment, bounds: list[list[float]],
                      patch_size: Sequence[int]) -> None:
    """The classifier and how the models of this synthesizer did, in its folder."""
    from nnunet_synth.selection.acceptance import SelectionRecord, file_sha256, save_classifier, save_record
    from nnunet_synth.synthesizers.checkpoint import WEIGHTS_FILE
    of_home = [(score, candidate) for score in found.scores
               if (candidate := found.candidates[score.name]).home == home]
    checkpoints = {candidate.checkpoint: {"sha256": file_sha256(candidate.folder / WEIGHTS_FILE),
                                          "steps": candidate.meta.steps, "rank": score.rank,
                                          "acceptance": score.acceptance} for score, candidate in of_home}
    meta = of_home[0][1].meta
    digest = save_classifier(found.trained.classifier, home)
    save_record(SelectionRecord(
        synthesizer=meta.synthesizer, fold=meta.fold, split_sha256=meta.split_sha256, plans_sha256=meta.plans_sha256,
        network=found.facts["classifier"], intensity_range=bounds, patch_size=list(patch_size),
        classifier_sha256=digest, accuracy=found.trained.accuracy, threshold=found.threshold, checkpoints=checkpoints,
        best=next(iter(checkpoints))), home)
