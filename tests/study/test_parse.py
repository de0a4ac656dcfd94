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


def test_an_unknown_study_names_the_known():
    with pytest.raises(UserError, match="no study file phantoms; .*covid-19-20.*phantom"):
        find_study("phantoms")
