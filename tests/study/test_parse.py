"""A study file becomes what it says, and each mistake in it is one line that names what is known."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from nnunet_synth.errors import UserError
from nnunet_synth.study import parse
from nnunet_synth.study.parse import STUDIES, find_study, parse_study, read_study
from nnunet_synth.study.plan import TrainingData, slug_of

FILE = """
name: small
datasets:
  lungs: {id: 501, folds: [0, 1], labelled: [10%, 4], tests: [own, "511:train"]}
seeds: [0, 1]
budget: {num_epochs: 5}
synthesizers:
  sean: {preset: tiny, steps: 10}
methods:
  supervised: {trainer: SupervisedTrainer}
  all labels: {trainer: nnUNetTrainer_5epochs, labelled: 100%}
  SA-CPS: {trainer: SACPSTrainer, synthesizer: sean, settings: {ramp_up_epochs: 2}}
  SA-ST (+SA-CPS): {trainer: SASTTrainer, synthesizer: sean, teacher: SA-CPS}
  mixed: {trainer: SupervisedTrainer, synthesizer: sean, data: "real+synthetic:400"}
made_datasets: 700
baseline: supervised
measures: {tolerance: 2}
published:
  - {method: SA-CPS, labelled: 10%, NSD: 61.52, source: Table IV}
  - {other: pix2pix, DSC: 40, source: elsewhere}
"""


@pytest.fixture
def content():
    return yaml.safe_load(FILE)


def test_a_study_is_read(content):
    study = parse_study(content)
    lungs = study.datasets["lungs"]
    assert lungs.folds == ("0", "1") and lungs.labelled == ("10%", "4") and lungs.tests == ("own", "511:train")
    assert list(study.methods) == ["supervised", "all labels", "SA-CPS", "SA-ST (+SA-CPS)", "mixed"]
    assert study.methods["mixed"].data == TrainingData(real=True, num_synthetic=400)
    assert str(study.methods["mixed"].data) == "real+synthetic:400"
    assert study.all_ratios == {"lungs": ["10%", "4", "100%"]}
    assert study.ratios(lungs, study.methods["all labels"]) == ("100%",)
    assert study.measures.criteria.tolerance == 2 and study.measures.best
    assert [row.method for row in study.published] == ["SA-CPS", "pix2pix"]
    assert not any(method.missing for method in study.methods.values())


@pytest.mark.parametrize(("text", "expected"), [
    ("real", TrainingData()), ("synthetic:7", TrainingData(False, 7)), ("real+synthetic:7", TrainingData(True, 7)),
    ("volumes", TrainingData(False, None, True)), ("volumes:80", TrainingData(False, 80, True)),
    ("real+volumes", TrainingData(True, None, True)), ("real+volumes:8", TrainingData(True, 8, True))])
def test_what_is_learnt_from(content, text, expected):
    data = parse_study(change(content, ["methods", "mixed", "data"], text)).methods["mixed"].data
    assert data == expected and str(data) == text and data.has_synthetic == (text != "real")


def test_a_synthesizer_that_draws_for_noise_has_a_mask_source_of_its_kind(content):
    content["synthesizers"] |= {"um2i": {"preset": "tiny", "options": {"gray_step": 20, "ndf": 4}},
                                "coarse": {"synthesizer": "um2i"}, "m2i": {"preset": "tiny"}}
    sources = {name: plan.mask_source for name, plan in parse_study(content).synthesizers.items()}
    assert {name: source.synthesizer for name, source in sources.items()} == \
        {"sean": "v2m", "m2i": "v2m", "um2i": "v2um", "coarse": "v2um"}
    assert sources["um2i"].preset == "tiny" and sources["coarse"].preset == "default"
    assert sources["um2i"].options == {"gray_step": 20.0}           # what both must share, where it is not the preset's
    assert sources["coarse"].options == {} and sources["m2i"].options == {}


def test_every_preset_that_draws_from_masks_and_its_source_agree():
    """Otherwise `sample --from noise` refuses them, after both were trained."""
    from nnunet_synth.mask_sources import find_mask_source
    from nnunet_synth.mask_sources.unsupervised import MASK_SETTINGS
    from nnunet_synth.study.plan import SynthesizerPlan
    from nnunet_synth.synthesizers import find_synthesizer
    from nnunet_synth.synthesizers.options import make_config
    for name in ("um2i", "cs2"):
        for preset in find_synthesizer(name).PRESETS:
            source = SynthesizerPlan(name, name, preset).mask_source
            of_masks = make_config(find_mask_source("v2um"), preset, source.options)
            own = make_config(find_synthesizer(name), preset)
            assert all(getattr(of_masks, key) == getattr(own, key) for key in MASK_SETTINGS)


def test_clusters(content):
    content["datasets"]["lungs"]["clusters"] = {"method": "superpixel", "segmentation": "felzenszwalb", "step": 2.5}
    plan = parse_study(content).datasets["lungs"].clusters
    assert plan.description == {"method": "superpixel", "segmentation": "felzenszwalb", "num_segments": 512,
                                "step": 2.5}
    content["datasets"]["lungs"]["clusters"] = {"method": "cs2"}
    assert parse_study(content).datasets["lungs"].clusters.description["max_clusters"] == 4


def test_the_example_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    study = parse_study(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]))
    assert len(study.methods) == 5 and study.datasets["mine"].tests == ("own", "val", "511", "511:train")


def test_slugs_can_be_parts_of_results_folders():
    assert slug_of("SA-ST (+SA-CPS)") == "sa-st-sa-cps" and slug_of("50 % + GAN") == "50-gan"


def change(content, path, value):
    """A copy of the file with one place changed."""
    content = copy.deepcopy(content)
    *above, last = path
    place = content
    for key in above:
        place = place[key]
    place[last] = value
    return content


@pytest.mark.parametrize(("path", "value", "message"), [
    (["methods", "SA-CPS", "trainer"], "SACPTrainer", r"unknown trainer 'SACPTrainer'; did you mean SACPSTrainer\?.*"
                                                      "known: .*CPSTrainer.*nnUNetTrainer_5epochs"),
    (["methods", "SA-CPS", "synthesizer"], "seam", "unknown synthesizer 'seam'; did you mean sean"),
    (["synthesizers", "sean", "synthesizer"], "gan", "unknown synthesizer 'gan'; .*known: .*sean"),
    (["synthesizers", "sean", "preset"], "huge", "synthesizer sean: .*huge.*tiny"),
    (["synthesizers", "sean", "options"], {"ngff": 1}, "synthesizer sean: .*ngf"),
    (["methods", "SA-CPS", "setings"], {}, "unknown key 'setings'; did you mean settings"),
    (["methods", "SA-CPS", "settings"], {"num_epoch": 1}, "method SA-CPS: .*num_epoch.*did you mean num_epochs"),
    (["methods", "SA-CPS", "settings"], {"seed": 1}, "seed of a training is set by the study"),
    (["budget"], {"num_epochs": 0}, "budget: num_epochs must be at least 1"),
    (["methods", "all labels", "settings"], {"num_epochs": 3}, "nnU-Net's own and takes no settings"),
    (["datasets", "lungs", "labelled"], ["ten"], "'ten' is neither a percentage"),
    (["datasets", "lungs", "labelled"], ["120%"], "'120%' is neither"),
    (["datasets", "lungs", "labelled"], "10%", "must be a list"),
    (["datasets", "lungs", "labelled"], ["10%", "10%"], "lists an entry twice"),
    (["methods", "SA-ST (+SA-CPS)", "teacher"], "SA-CSP", "unknown teacher 'SA-CSP'; did you mean SA-CPS"),
    (["methods", "SA-CPS", "teacher"], "SA-ST (+SA-CPS)", "teach each other"),
    (["methods", "SA-ST (+SA-CPS)", "teacher"], "all labels", "teacher all labels is trained on other data"),
    (["datasets", "lungs", "tests"], ["test"], "unknown test set 'test'; known: own, val"),
    (["datasets", "lungs", "folds"], ["all"], "fold all has no cases to hide"),
    (["datasets", "lungs", "id"], 5000, "id of dataset lungs must be a whole number from 1 to 999"),
    (["datasets", "lungs", "network"], {"name": "a__b", "features": [8]}, "network name 'a__b'"),
    (["datasets", "lungs", "network"], {"name": "a", "features": [8, 16, 32], "patch_size": [6, 8]}, "multiple of 4"),
    (["datasets", "twin"], {"id": 501}, "have the same id 501"),
    (["seeds"], [], "seeds of the study must be a list"),
    (["seeds"], [-1], "seeds must be a whole number from 0"),
    (["baseline"], "CPS", "unknown baseline 'CPS'; .*known: supervised"),
    (["methods", "sa cps"], {"trainer": "CPSTrainer"}, "methods SA-CPS and sa cps would share"),
    (["methods", "mixed", "data"], "synthetic", "unknown data 'synthetic'; known: real"),
    (["methods", "mixed", "data"], "real+", "unknown data 'real\\+'"),
    (["methods", "mixed", "synthesizer"], None, "need a synthesizer; known: sean"),
    (["made_datasets"], None, "set made_datasets"),
    (["methods", "mixed", "data"], "volumes:0", "unknown data 'volumes:0'; known: .*volumes"),
    (["methods", "mixed", "data"], "synthetic:3+real", "unknown data"),
    (["methods", "mixed", "draw_for"], "nothing", "unknown draw_for 'nothing'; .*known: labels, pool, noise, paper"),
    (["methods", "mixed", "draw_for"], "paper-conditions", "paper-conditions is for data volumes, not real.synthetic"),
    (["methods", "mixed"], {"trainer": "SupervisedTrainer", "synthesizer": "sean", "data": "volumes",
                            "draw_for": "noise"}, "volumes are drawn for label volumes: .*not noise"),
    (["methods", "mixed", "configuration"], "3d_fullres", "3d_fullres learns from volumes, .*use data volumes"),
    (["methods", "mixed"], {"trainer": "SACPSTrainer", "synthesizer": "sean", "data": "volumes",
                            "configuration": "3d_fullres"}, "SACPSTrainer looks for the synthesizer in its own"),
    (["datasets", "lungs", "clusters"], {"method": "felzenszwalb"}, "unknown method 'felzenszwalb'; known: cs2, super"),
    (["datasets", "lungs", "clusters"], {"method": "cs2", "step": 5}, "segmentation, segments and step belong to"),
    (["datasets", "lungs", "clusters"], {"method": "superpixel", "step": 1}, "clusters of dataset lungs: --step 1"),
    (["datasets", "lungs", "clusters"], {"method": "superpixel", "segmentation": "fh"}, "unknown superpixels 'fh'"),
    (["datasets", "lungs", "clusters"], {"method": "superpixel", "segments": 0}, "segments of the clusters of dataset"),
    (["published", 0, "method"], "SACPS", "published row 1: unknown method 'SACPS'"),
    (["published", 0, "labelled"], "20%", "unknown ratio 20%; known: 10%, 100%, 4"),
    (["published", 0, "dice"], 1, "unknown key 'dice'"),
    (["published", 1, "DSC"], "40", "DSC must be a number"),
    (["measures"], {"tolerence": 1}, "unknown key 'tolerence'; did you mean tolerance"),
    (["measures"], {"tolerance": -1}, "tolerance"),
    (["name"], "a/b", "becomes a folder"),
    (["methods"], {}, "methods of the study is empty"),
])
def test_mistakes_are_one_line(content, path, value, message):
    with pytest.raises(UserError, match=message) as error:
        parse_study(change(content, path, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
    ("name: [", "not valid YAML, line"), ("just text", "the study must be a mapping"),
    ("name: a\nname: b\n", "'name' stands twice"), (FILE.replace("budget:", "buget:"), "did you mean budget"),
])
def test_broken_files(tmp_path, text, message):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"{file}: .*{message}"):
        read_study(file)


def test_what_is_announced_is_skipped_and_no_mistake(content, monkeypatch):
    monkeypatch.setattr(parse, "ANNOUNCED_SYNTHESIZERS", ("dreamgan",))
    content = change(content, ["synthesizers", "dreamgan"], {"preset": "tiny"})
    content["methods"]["GAN"] = {"trainer": "SACPSTrainer", "synthesizer": "dreamgan"}
    methods = parse_study(content).methods
    assert methods["GAN"].missing == "needs synthesizer dreamgan, which this version does not have"
    assert methods["supervised"].missing is None


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_of_the_package(file):
    study = read_study(file)
    assert study.name == file.stem and find_study(file.stem) == file
    assert study.methods[study.baseline].missing is None
    if study.published:
        papers = {row.source.split(" Table")[0] for row in study.published}
        assert papers <= {"SA-CPS", "CoSinGAN", "UM2I", "LcGAN", "Inf-Net"}


def test_the_help_names_every_study():
    from nnunet_synth.commands import study as verb
    listed = re.search(r"comes with the package \((.*?)\)", verb.__doc__, re.DOTALL)[1]
    assert sorted(listed.replace("\n", " ").split(", ")) == sorted(file.stem for file in STUDIES.glob("*.yaml"))


def test_the_papers_numbers():
    """A few of them, against the design notes."""
    rows = {(row.method, row.labelled): row.scores for row in read_study(STUDIES / "covid-19-20.yaml").published}
    assert rows["SA-CPS", "10%"] == {"NSD": 61.52, "DSC": 65.46}
    assert rows["SA-ST (+SA-CPS)", "30%"] == {"NSD": 67.34, "DSC": 71.61}
    assert rows["full supervision", "100%"] == {"NSD": 69.48}
    assert len(rows) == 34


def test_the_rows_of_cosingan_draw_as_the_paper_says():
    """Tables 5 and 6: RC off but in RC-CoSinGAN, IF on in IF-CoSinGAN; volumes for the masks of all cases."""
    study = read_study(STUDIES / "covid19-ct-seg.yaml")
    options = {name: study.synthesizers[study.methods[name].synthesizer].options
               for name in ("CoSinGAN", "IF-CoSinGAN", "RC-CoSinGAN", "CoSinGAN 3D")}
    assert {name: (found["randomised_condition"], found.get("image_fusion", False))
            for name, found in options.items()} == {
        "CoSinGAN": (False, False), "IF-CoSinGAN": (False, True), "RC-CoSinGAN": (True, False),
        "CoSinGAN 3D": (False, False)}
    assert all(study.methods[name].data == TrainingData(False, None, True) and
               study.methods[name].draw_for == "paper-conditions" for name in options)
    rows = {(row.method, row.test): row.scores["DSC"] for row in study.published}
    assert [rows[name, "val"] for name in options] == [64.1, 64.7, 71.3, 61.5]
    assert [rows[name, "521:train"] for name in options] == [42.4, 37.1, 47.4, 44.9]


def test_the_arms_of_the_superpixel_ablation_differ_in_the_superpixels_alone():
    from dataclasses import replace
    arms = list(read_study(STUDIES / "ablation-um2i-superpixels.yaml").datasets.values())
    assert [arm.clusters.description.pop("segmentation") for arm in arms] == ["slic", "felzenszwalb"]
    alike = [replace(arm, name="", id=1, convert=None,
                     clusters={key: value for key, value in arm.clusters.description.items() if key != "segmentation"})
             for arm in arms]
    assert alike[0] == alike[1]
    others = [dataset.id for file in STUDIES.glob("*.yaml") if file.stem != "ablation-um2i-superpixels"
              for dataset in read_study(file).datasets.values()]
    assert not {arm.id for arm in arms} & set(others)           # a dataset has one kind of clusters


def test_an_unknown_study_names_the_known():
    with pytest.raises(UserError, match="no study file phantoms; .*covid-19-20.*phantom"):
        find_study("phantoms")
