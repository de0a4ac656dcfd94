"""Each planted fault is told by its own measure and by FID: the short version of benchmarks/planted_degradations.py."""

import pytest

from benchmarks.planted_degradations import FAULTS, compare, orders, values_of
from nnunet_synth.errors import UserError
from nnunet_synth.quality.measure import QualityOptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def values():
    options = QualityOptions(extractors=["imagenet"], resolutions=(96,), num_probed=6)
    try:
        return values_of(compare(size=64, num_patients=10, num_slices=4, options=options))
    except UserError as error:
        if "no ImageNet network can be loaded" in str(error):
            pytest.skip("the extra nnunet_synth[eval] is not installed")
        raise


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_by_its_measure_and_by_fid(values, fault):
    assert all(orders(values)[fault].values()), {measure: values[measure] for measure in (*FAULTS[fault][1], "FID")}


def test_each_measure_is_led_by_its_own_fault(values):
    """Else a measure that follows FID, or any change at all, would do."""
    for fault, (_, measures) in FAULTS.items():
        for measure, direction in measures.items():
            of_sets = {name: direction * value for name, value in values[measure].items() if name != "real"}
            assert max(of_sets, key=of_sets.get) == f"{fault}, strong", (measure, of_sets)
