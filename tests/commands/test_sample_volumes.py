"""nnunet_synth sample --volumes: one volume for each case and model, of the cases that may be seen, in the raw grid."""

import argparse
import json

import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunet_synth.commands import sample as command
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.errors import UserError
from nnunet_synth.synthesizers.cosingan import CoSinGAN
from nnunet_synth.synthesizers.um2i import UM2I
from tests.conftest import DATASET_ID
from tests.trainers.runs import save_untrained


@pytest.fixture
def experiment(planned_dataset):
    save_untrained(CoSinGAN, width=4, num_models=2)
    return load_experiment(DATASET_ID, "2d", 0)


def run(*arguments, synthesizer="cosingan"):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(DATASET_ID), "2d", "0", "--device", "cpu", "--synthesizer", synthesizer,
                                   *arguments]))


def read(path):
    return SimpleITK.ReadImage(str(path))


def provenance_of(folder):
    return json.loads((folder / "dataset.json").read_text())["nnunet_synth"]["synthetic"]


def test_a_volume_for_each_training_case_and_model(experiment):
    run("--volumes", "--as-dataset", "802", "--name", "Volumes")
    folder = experiment.raw_folder.parent / "Dataset802_Volumes"
    verify_dataset_integrity(str(folder), num_processes=1)
    provenance = provenance_of(folder)
    assert provenance["leaks_test_masks"] is False
    expected = [{"case": case_id, "variant": variant} for case_id in experiment.train_ids for variant in (0, 1)]
    assert provenance["drawn_for"] == expected
    for number, drawn_for in enumerate(expected):
        name = f"cosingan_{number:05d}"
        image, label = read(folder / "imagesTr" / f"{name}_0000.nii.gz"), read(folder / "labelsTr" / f"{name}.nii.gz")
        real = read(experiment.raw_folder / "labelsTr" / f"{drawn_for['case']}.nii.gz")
        assert label.GetSize() == image.GetSize() == real.GetSize() and image.GetSize()[2] > 1
        assert image.GetSpacing() == pytest.approx(real.GetSpacing(), rel=1e-4)
        assert np.array_equal(SimpleITK.GetArrayFromImage(label), SimpleITK.GetArrayFromImage(real))
    assert (folder / "gallery.png").is_file()


def test_one_volume_has_one_style(experiment, monkeypatch, tmp_path):
    """The gray values of the conditions are drawn once a volume: slices must fit each other."""
    begun = []
    begin = CoSinGAN.begin_step
    monkeypatch.setattr(CoSinGAN, "begin_step", lambda self, generator: (begin(self, generator),
                                                                         begun.append(self._choice))[0])
    run("--volumes", "-n", "3", "--output", str(tmp_path / "out"))
    assert [choice.models for choice in begun[:3]] == [(0,), (1,), (0,)]
    assert not np.allclose(begun[0].grays, begun[1].grays)
    assert len(list((tmp_path / "out" / "imagesTr").iterdir())) == 3


def test_the_papers_conditions_are_those_of_all_cases_and_say_so(experiment, tmp_path, capsys):
    run("--paper-conditions", "--output", str(tmp_path / "out"), "--option", "randomised_condition=false")
    provenance = provenance_of(tmp_path / "out")
    assert provenance["leaks_test_masks"] is True and provenance["randomised_condition"] is False
    cases = {entry["case"] for entry in provenance["drawn_for"]}
    assert cases == set(experiment.labelled_ids) and cases & set(experiment.val_ids)
    assert len(provenance["drawn_for"]) == 2 * len(cases)
    assert "has seen test masks" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "match"), [
    (("--volumes", "--from", "pool"), "drawn for label volumes, slice by slice: leave out --from and --montage"),
    (("--volumes", "--option", "width=8"), "option width: of a trained cosingan it cannot be changed; what can be: "
                                           "randomised_condition, image_fusion, dropout"),
    (("--volumes", "--option", "dropout=1"), "option dropout of synthesizer cosingan must be bool"),
])
def test_mistakes_get_one_line_and_leave_nothing(experiment, tmp_path, arguments, match):
    with pytest.raises(UserError, match=match):
        run(*arguments, "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_must_look_at_scans_cannot_be_drawn_for_hidden_ones(experiment, tmp_path):
    save_untrained(UM2I)
    with pytest.raises(UserError, match="needs the image of a scan: --paper-conditions are masks of cases whose scans"):
        run("--paper-conditions", "--output", str(tmp_path / "out"), synthesizer="um2i")


def test_cases_with_classes_that_no_model_has_seen(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(CoSinGAN, "fit_pool", lambda self, slices: self.known_classes[:, -1].fill_(False))
    with pytest.raises(UserError, match="has not seen the classes of any of these cases"):
        run("--volumes", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
