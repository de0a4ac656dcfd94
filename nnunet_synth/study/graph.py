"""A study → all its runs, each after those that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nnunet_synth.errors import UserError
from nnunet_synth.study.learn import (
    BEST,
    FINAL,
    Evaluate,
    MakeData,
    Predict,
    PreprocessMade,
    Pretrain,
    PretrainMasks,
    Scores,
    Train,
)
from nnunet_synth.study.place import PLANS, DatasetFiles, Folds, Place
from nnunet_synth.study.plan import DatasetPlan, Method, Study, slug_of
from nnunet_synth.study.prepare import (
    AddNetwork,
    Configuration,
    Configure,
    FindClusters,
    FindData,
    FindLayouts,
    MakeFolds,
    PlanNetworks,
    PreprocessLabelled,
    PreprocessUnlabelled,
)
from nnunet_synth.study.run import Run


def runs_of(study: Study, place: Place) -> list[Run]:
    """Every run of the study, in an order in which they can be done one after another.

    Datasets first, then ratio by ratio and seed by seed through the methods, so that a study that is stopped early has
    whole rows of all methods for the first seeds.

    Raises:
        UserError: the study names a fold that its dataset does not have, or several datasets have one id.
    """
    return list(_Builder(study, place).runs().values())


@dataclass
class _Builder:
    study: Study
    place: Place
    made: dict[str, Run] = field(default_factory=dict)

    def runs(self) -> dict[str, Run]:
        next_id = self.study.made_datasets or 0
        for plan in self.study.datasets.values():
            dataset = _Dataset(self.study, self.place, plan)
            for run in dataset.prepare():
                self._add(run)
            next_id = dataset.assign_ids(next_id)
            for fold in plan.folds:
                for seed in self.study.seeds:
                    for ratio in self.study.all_ratios[plan.name]:
                        for method in self.study.methods.values():
                            if ratio in self.study.ratios(plan, method):
                                for run in dataset.learn(method, fold, ratio, seed):
                                    self._add(run)
        return self._in_order()

    def _add(self, run: Run) -> None:
        self.made.setdefault(run.id, run)       # a synthesizer is asked for by every method that uses it

    def _in_order(self) -> dict[str, Run]:
        """As they were made, but each after what it needs: a teacher may stand below its student in the file."""
        done: dict[str, Run] = {}

        def place(run: Run) -> None:
            for need in run.needs:
                if need not in done:
                    place(self.made[need])
            done.setdefault(run.id, run)

        for run in self.made.values():
            place(run)
        return done


class _Dataset:
    """The runs of one dataset."""

    def __init__(self, study: Study, place: Place, plan: DatasetPlan) -> None:
        self.study, self.place, self.plan = study, place, plan
        self.slug = slug_of(plan.name)
        self.files = place.dataset(plan.id, "ChestPhantom" if plan.phantom is not None else "")
        self.folds = Folds(study, plan, self.files)
        self.ids: dict[tuple[str, str, str], DatasetFiles] = {}

    # -- names -------------------------------------------------------------------------------------------------------

    def base(self, method: Method) -> str:
        return method.configuration or self.plan.trained_configuration

    def drawing_base(self, method: Method) -> str:
        """The configuration whose images a method's synthesizer draws: the one that the method is trained in; but whole
        volumes are drawn in the dataset's, and then serve every configuration."""
        return self.plan.trained_configuration if method.data.are_volumes else self.base(method)

    def synthesizer_configuration(self, method: Method) -> str:
        """Where a method's synthesizer is pretrained: the base, so that other studies share it, where the study calls
        it by its registered name; otherwise a configuration of its own in between."""
        plan = self.study.synthesizers[method.synthesizer or ""]
        base = self.drawing_base(method)
        return base if plan.name == plan.synthesizer else f"{base}_{slug_of(plan.name)}"

    def configuration(self, method: Method, seed: int) -> str:
        return f"{self.base(method)}_{method.slug}_s{seed}"

    def settings(self, method: Method, seed: int) -> dict[str, Any]:
        settings: dict[str, Any] = {**self.study.budget, **method.settings, "seed": seed}
        if method.synthesizer:
            settings |= self._synthesizer_settings(method)
        if method.teacher:
            teacher = self.study.methods[method.teacher]
            settings["teacher"] = f"{teacher.trainer}__{PLANS}__{self.configuration(teacher, seed)}"
        return settings

    def _synthesizer_settings(self, method: Method) -> dict[str, Any]:
        plan = self.study.synthesizers[method.synthesizer or ""]
        return {"synthesizer": plan.synthesizer, "synthesizer_preset": plan.preset,
                **({"synthesizer_options": dict(plan.options)} if plan.options else {})}

    def assign_ids(self, first: int) -> int:
        """Ids for the datasets that methods with synthetic data need, in the order of the study; returns the next."""
        for fold in self.plan.folds:
            for ratio in self.study.all_ratios[self.plan.name]:
                for method in self.study.methods.values():
                    key = self._data_key(method, fold, ratio)
                    if not method.data.has_synthetic or key in self.ids or \
                            ratio not in self.study.ratios(self.plan, method):
                        continue
                    if first > 999:
                        raise UserError("the datasets that the study makes need ids beyond 999: begin made_datasets "
                                        "lower")
                    words = f"{self.study.name} {self.plan.name} {fold} {ratio} {key[2]}"
                    name = "".join(word.capitalize() for word in slug_of(words.replace("%", "pc")).split("-"))
                    self.ids[key] = DatasetFiles(self.place, first, f"Dataset{first:03d}_{name}")
                    first += 1
        return first

    def _data_key(self, method: Method, fold: str, ratio: str) -> tuple[str, str, str]:
        return fold, ratio, f"{method.data} {method.draw_for} {method.synthesizer} {self.drawing_base(method)}"

    # -- preparation -------------------------------------------------------------------------------------------------

    def prepare(self) -> Iterator[Run]:
        """The dataset's own runs; each needs the one before."""
        plan, files, needs = self.plan, self.files, ()
        here = {"files": files, "plan": plan}
        bases = sorted({base for method in self._possible() for base in (self.base(method), self.drawing_base(method))})
        steps: list[Run] = [FindData("data", **here), PlanNetworks("plan", **here)]
        if plan.network:
            steps.append(AddNetwork("network", network=plan.network, **here))
        steps += [PreprocessLabelled(f"preprocess-{slug_of(base)}", configuration=base, **here) for base in bases]
        if plan.layouts:
            steps.append(FindLayouts("layouts", **here))
        if plan.clusters:
            steps.append(FindClusters("clusters", **here))
        steps += [MakeFolds("folds", folds=self.folds, **here),
                  Configure("configure", configurations=tuple(self.configurations()), **here)]
        steps += [PreprocessUnlabelled(f"unlabelled-{slug_of(base)}", configuration=base, **here) for base in bases]
        for step in steps:
            run = replace(step, id=f"prepare/{self.slug}/{step.id}", needs=needs)
            yield run
            needs = (run.id,)
        self.ready = needs

    def _possible(self) -> list[Method]:
        return [method for method in self.study.methods.values() if method.missing is None]

    def configurations(self) -> Iterator[Configuration]:
        seen = set()
        for method in self._possible():
            base, drawing_base = self.base(method), self.drawing_base(method)
            if method.synthesizer and (name := self.synthesizer_configuration(method)) != drawing_base:
                if name not in seen:
                    yield Configuration(name, drawing_base, self._synthesizer_settings(method), ())
                seen.add(name)
                base = name if base == drawing_base else base
            for seed in self.study.seeds:
                name = self.configuration(method, seed)
                folders = [files.results / f"{method.trainer}__{PLANS}__{name}"
                           for files in (self.files, *self.ids.values())]
                yield Configuration(name, base, self.settings(method, seed), tuple(folders))

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn(self, method: Method, fold: str, ratio: str, seed: int) -> Iterator[Run]:
        """Everything of one method, fold, ratio and seed, up to its scores."""
        index = self.folds.indices[fold, ratio]
        cell = f"{self.slug}/{_fold_slug(fold, ratio)}"
        files, needs = self.files, self.ready
        if method.synthesizer:
            plan = self.study.synthesizers[method.synthesizer]
            base = slug_of(self.drawing_base(method))
            pretrain = Pretrain(f"pretrain/{slug_of(plan.name)}/{base}/{cell}", needs,
                                plan.missing, files, plan, self.synthesizer_configuration(method), index)
            yield pretrain
            if method.data.has_synthetic and method.draw_for == "noise" and plan.missing is None:
                source = plan.mask_source
                masks = PretrainMasks(f"pretrain/{source.name}-of-{slug_of(pretrain.configuration)}/{cell}", needs,
                                      None, files, source, pretrain.configuration, index)
                yield masks
                needs = (*needs, masks.id)
            needs = (*needs, pretrain.id)
            if method.data.has_synthetic:
                made = self.ids[self._data_key(method, fold, ratio)]
                data = MakeData(f"synthesize/{made.id}/{cell}", needs, method.missing, files, made, self.folds, fold,
                                ratio, method, plan.synthesizer, pretrain.configuration)
                preprocess = PreprocessMade(f"preprocess/{made.id}/{slug_of(self.base(method))}/{cell}", (data.id,),
                                            method.missing, made, self.base(method))
                yield from (data, preprocess)
                files, index, needs = made, (0 if fold != "all" else "all"), (*needs, preprocess.id)
        if method.teacher:
            needs = (*needs, self._train_id(self.study.methods[method.teacher], cell, seed))
        train = Train(self._train_id(method, cell, seed), needs, method.missing, files, method.trainer,
                      self.configuration(method, seed), index, "val" in self.plan.tests)
        yield train
        for checkpoint in (FINAL, *((BEST,) if self.study.measures.best else ())):
            for test in self.plan.tests:
                if (checkpoint, test) != (BEST, "val"):     # nnU-Net validates the final checkpoint
                    yield from self._test(method, fold, ratio, seed, cell, train, test, checkpoint)

    def _train_id(self, method: Method, cell: str, seed: int) -> str:
        return f"train/{method.slug}/{cell}/s{seed}"

    def _test(self, method: Method, fold: str, ratio: str, seed: int, cell: str, train: Train, test: str,
              checkpoint: str) -> Iterator[Run]:
        suffix = "" if checkpoint == FINAL else f"-{checkpoint}"
        test_slug = slug_of(test) + suffix
        where = f"{method.slug}/{cell}/s{seed}/{test_slug}"
        scores = Scores(self.plan.name, test, fold, ratio, method.name, seed, checkpoint, train.id)
        measures = self.study.measures
        common = {"measures": measures, "what": scores, "missing": method.missing,
                  "target": self.place.folder / "scores" / where, "dataset_json": self.files.raw / "dataset.json"}
        if test == "val":
            yield Evaluate(f"evaluate/{where}", (train.id,), predictions=train.folder / "validation",
                           truth=self.place.folder / "truth" / cell, held_out=(self.folds, fold, ratio), **common)
            return
        images, truth = self._test_folders(test)
        predict = Predict(f"predict/{where}", (train.id,), method.missing, train, images,
                          self.place.folder / "predictions" / where, checkpoint, measures.mirroring)
        yield predict
        yield Evaluate(f"evaluate/{where}", (predict.id,), predictions=predict.target, truth=truth, **common)

    def _test_folders(self, test: str) -> tuple[Any, Any]:
        if test == "own":
            return self.files.raw / "imagesTs", self.files.raw / "labelsTs"
        number, _, part = test.partition(":")
        other = self.place.dataset(int(number))
        folder = "Tr" if part == "train" else "Ts"
        return other.raw / f"images{folder}", other.raw / f"labels{folder}"


def _fold_slug(fold: str, ratio: str) -> str:
    """"0", "10%" → f0_10pc."""
    return f"{'f' if fold.isdigit() else ''}{slug_of(fold)}_{slug_of(ratio.replace('%', 'pc'))}"
