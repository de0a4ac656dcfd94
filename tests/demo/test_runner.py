"""Steps run once, in their environment, with their output in a log; a failure is one line."""

import json
import sys

import pytest

from nnunet_synth import process as process_module
from nnunet_synth.demo.runner import Runner, Step
from nnunet_synth.errors import UserError


@pytest.fixture
def python(monkeypatch):
    """`python` as the one command that is known."""
    monkeypatch.setattr(process_module, "executable", lambda name: [sys.executable])


def count(folder):
    """A command that appends a line to a file, each time it runs."""
    return ("python", "-c", f"import os; open({str(folder / 'count')!r}, 'a').write(os.environ['COLOUR'] + '\\n'); "
            "print('hello')")


def test_a_finished_step_is_not_done_again(tmp_path, python, capsys):
    command = count(tmp_path)
    for _ in range(2):
        runner = Runner(tmp_path, {"COLOUR": "red"})
        runner.run(Step("count", command, environment=(("COLOUR", "blue"),)))
    assert (tmp_path / "count").read_text() == "blue\n"
    assert "done before" in capsys.readouterr().out
    assert json.loads((tmp_path / "steps.json").read_text())["count"]["command"] == " ".join(command)
    assert next((tmp_path / "logs").glob("01_*")).read_text() == "hello\n"


def test_a_step_with_another_command_is_done(tmp_path, python):
    Runner(tmp_path, {"COLOUR": "red"}).run(Step("count", count(tmp_path)))
    Runner(tmp_path, {"COLOUR": "green"}).run(Step("count", (*count(tmp_path), "more")))
    assert (tmp_path / "count").read_text() == "red\ngreen\n"


def test_functions_are_steps_too(tmp_path):
    calls = []
    for _ in range(2):
        Runner(tmp_path, {}).run(Step("call", function=lambda: calls.append(1)))
    assert calls == [1]


def test_a_failure_is_told_in_one_line_and_tried_again(tmp_path, python):
    failing = Step("break", ("python", "-c", "import sys; print('the reason'); sys.exit(3)"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"break: .*status 3 \(the reason\).*01_python.log") as error:
            Runner(tmp_path, {}).run(failing)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "steps.json").exists()


def test_what_continues_an_interrupted_run_is_passed_but_not_remembered(tmp_path, python):
    step = Step("arguments", ("python", "-c", "import sys; print(sys.argv[1:])"))
    Runner(tmp_path, {}).run(step, resume=("--c",))
    assert next((tmp_path / "logs").glob("01_*")).read_text() == "['--c']\n"
    Runner(tmp_path, {}).run(step)      # skipped: nothing to continue
    assert next((tmp_path / "logs").glob("01_*")).read_text() == "['--c']\n"


def test_commands_of_this_environment():
    assert process_module.executable("nnunet_synth") == [sys.executable, "-m", "nnunet_synth"]
    assert process_module.executable("nnUNetv2_train")[0].endswith("nnUNetv2_train")
    with pytest.raises(UserError, match="nnUNetv2_dream"):
        process_module.executable("nnUNetv2_dream")
