from dataclasses import replace
from itertools import permutations

import pytest

from nnunet_synth.dataset_conversion.dicom_series import Series, scan_series
from nnunet_synth.dataset_conversion.series_choice import kernel_kind, rank_series, why_behind
from nnunet_synth.dataset_conversion.sources import list_files
from tests.makers.dicom import CTSeries, random_hu


@pytest.mark.parametrize(("kernels", "kind"), [
    (("STANDARD", "SOFT", "CHST", "B20f", "B31f", "B41s", "I26f\\3", "I31f\\2", "Br36d\\3", "Br40f", "Qr40d", "FC01",
      "FC07", "FC08", "FC17", "FC18-H", "A", "B", "C", "Standard"), "soft"),
    (("LUNG", "BONE", "BONEPLUS", "EDGE", "DETAIL", "B50f", "B60f", "B70s", "B80f", "I70f\\3", "Bl57d\\3", "Br64",
      "FC30", "FC50", "FC52", "FC55", "FC86", "D", "L", "YA", "YB", "YC", "bone"), "sharp"),
    (("", "IMR1", "7", "unknown", "X"), "unknown"),
])
def test_kernels_of_all_makers(kernels, kind):
    assert {kernel: kernel_kind(kernel) for kernel in kernels} == dict.fromkeys(kernels, kind)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Series:
    folder = tmp_path_factory.mktemp("series")
    CTSeries(random_hu((24, 4, 4))).write(folder)
    series, = scan_series(list_files(folder))
    return series


def like(series: Series, uid: str, spacing: float = 5.0, num_slices: int = 24, **header) -> Series:
    """The same series with other headers, as `rank_series` sees it: it reads no file."""
    slices = [replace(one, header=replace(one.header, position=(0.0, 0.0, index * spacing),
                                          **{"thickness": spacing, **header}))
              for index, one in enumerate(series.slices[:num_slices])]
    return replace(series, uid=uid, slices=tuple(slices))


def test_the_rule_is_thin_then_soft_then_original_then_long_then_uid(plain):
    best_first = [
        like(plain, "f", 1.0, kernel="LUNG"),
        like(plain, "e", 2.5, kernel="STANDARD", num_slices=22),
        like(plain, "d", 2.5, kernel="STANDARD", image_type=frozenset({"DERIVED", "AXIAL"})),
        like(plain, "g", 2.5, kernel="IMR1"),
        like(plain, "c", 2.5, kernel="LUNG"),
        like(plain, "b", 2.5, kernel="LUNG", num_slices=21),
        like(plain, "h", 2.5, kernel="LUNG", num_slices=21),
        like(plain, "a", 5.0, kernel="STANDARD"),
    ]
    for order in ((0, 1, 2, 3, 4, 5, 6, 7), (7, 6, 5, 4, 3, 2, 1, 0), (3, 0, 5, 7, 1, 6, 2, 4)):
        ranked, refused = rank_series([best_first[index] for index in order], 20, False)
        assert [one.uid for one in ranked] == [one.uid for one in best_first] and not refused
    assert [why_behind(other, best) for best, other in zip(best_first, best_first[1:], strict=False)] == [
        f"usable, but {why}" for why in ("thicker", "reformatted", "sharper kernel", "sharper kernel", "covers less",
                                         "as good, but of a later UID", "thicker")]


def test_thin_slices_far_apart_are_not_thin(plain):
    far, near = like(plain, "a", 10.0, thickness=1.0), like(plain, "b", 5.0, thickness=5.0)
    assert [one.uid for one in rank_series([far, near], 20, False)[0]] == ["b", "a"]


def test_a_tenth_of_a_millimetre_is_not_thinner(plain):
    """1.25 and 1.249 mm are one thickness: the kernel decides."""
    series = like(plain, "a", 1.249, kernel="LUNG"), like(plain, "b", 1.25, kernel="STANDARD")
    for order in permutations(series):
        assert rank_series(order, 20, False)[0][0].uid == "b"


def test_what_is_refused_has_its_reason(plain):
    few = like(plain, "a", num_slices=5)
    ranked, refused = rank_series([few, plain, Series("", (), defect="file 3 is truncated")], 20, False)
    assert ranked == [plain]
    assert [(one.series.uid, one.reason) for one in refused] == [
        ("a", "5 slice(s), fewer than 20 (--min-slices)"), ("", "file 3 is truncated")]
