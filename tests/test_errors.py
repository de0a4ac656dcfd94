import pickle

from nnunet_synth.errors import UserError


def test_a_message_is_one_line_whoever_is_quoted_in_it():
    error = UserError("study.yaml is not valid YAML: unexpected end\n  in line 3,\r\n  column 1: correct it")
    assert str(error) == "study.yaml is not valid YAML: unexpected end in line 3, column 1: correct it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)         # from a worker process
