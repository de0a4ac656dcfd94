import json
import re

import pytest

from nnunet_synth.dataset_conversion.pseudonyms import IdTable, without_names
from nnunet_synth.errors import UserError


def test_ids_are_stable_with_the_table_and_unlike_without_it(tmp_path):
    table = IdTable(tmp_path / "ids.json")
    first = table.id_of("nccid", "1.2.3")
    table.remember(first, patient="Covid1")
    table.save()
    assert re.fullmatch(r"nccid_[0-9a-f]{16}", first)
    again = IdTable(tmp_path / "ids.json")
    assert again.id_of("nccid", "1.2.3") == first and again.ids == {first: {"patient": "Covid1"}}
    others = {again.id_of("nccid", "1.2.4"), again.id_of("patient", "1.2.3"),
              IdTable(tmp_path / "other.json").id_of("nccid", "1.2.3")}
    assert len(others) == 3 and first.split("_")[1] not in {other.split("_")[1] for other in others}


def test_what_earlier_conversions_noted_is_kept(tmp_path):
    for name in ("a", "b", "a"):
        table = IdTable(tmp_path / "ids.json")
        table.remember(table.id_of("nccid", name), patient=name)
        table.save()
    content = json.loads((tmp_path / "ids.json").read_text())
    assert sorted(entry["patient"] for entry in content["ids"].values()) == ["a", "b"]
    assert len(bytes.fromhex(content["salt"])) == 32
    assert (tmp_path / "ids.json").stat().st_mode & 0o077 == 0          # for its owner's eyes only


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    table = IdTable(tmp_path / "file" / "ids.json")
    with pytest.raises(UserError, match="ids.json cannot be written .*--id-table FILE"):
        table.save()


@pytest.mark.parametrize(("text", "expected"), [
    ("/data/a b/training/ct/Covid7/1.2.3 cannot be read: Permission denied",
     "a file of it: Permission denied"),
    ("series of Covid7 and Covid77: 3 slice(s) missing", "series of (withheld) and Covid77: 3 slice(s) missing"),
    ("/tmp/nnunet_x/1.2.840.10008.5.1.nii.gz is no image", "/tmp/nnunet_x/(withheld).nii.gz is no image"),
    ("irregular spacing, 3.50 to 6.50 mm", "irregular spacing, 3.50 to 6.50 mm"),
])
def test_messages_lose_paths_names_and_uids(text, expected):
    assert without_names(text, ("/data/a b", ""), ("Covid7", "")) == expected
