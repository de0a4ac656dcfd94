"""Methods × seeds × cases → what a study says, and its tables."""

import json
import math

import numpy as np
import pytest
from numpy.random import default_rng

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation.comparison import compare_methods, mean_over_seeds, tidy
from nnunet_synth.evaluation.report import Cell
from nnunet_synth.evaluation.segmentation import METRICS, headings
from nnunet_synth.evaluation.statistics import Spread, holm, paired_wilcoxon
from nnunet_synth.evaluation.tables import measure_table, overview_table

NAN = math.nan
CASES = [f"case_{number}" for number in range(9)]


def scores(method, num_seeds, better_by=0.0):
    """DSC [S, C]: the same hard and easy cases for every method."""
    rng = default_rng(sum(map(ord, method)))
    hardness = default_rng(0).uniform(0.3, 0.8, len(CASES))
    return hardness + better_by + 0.02 * rng.standard_normal((num_seeds, len(CASES)))


def rows_of(method, table, class_name="lesion"):
    return [{"method": method, "seed": seed, "case": case, "class": class_name, "DSC": value, "HD95": 20 * (1 - value)}
            for seed, values in enumerate(table.tolist()) for case, value in zip(CASES, values, strict=False)]


@pytest.fixture
def tables():
    return {"nnUNetTrainer": scores("nnUNetTrainer", 3), "CPSTrainer": scores("CPSTrainer", 3, 0.01),
            "SACPSTrainer": scores("SACPSTrainer", 2, 0.1)}


@pytest.fixture
def rows(tables):
    return [row for method, table in tables.items() for row in rows_of(method, table)]


def compare(rows, baseline="nnUNetTrainer", measures=("DSC", "HD95"), **settings):
    return compare_methods(rows, baseline, measures, num_resamples=400, **settings)


def of(comparisons, method, measure="DSC", class_name="lesion"):
    found, = (entry for entry in comparisons
              if (entry.method, entry.measure, entry.class_name) == (method, measure, class_name))
    return found


class TestComparison:
    def test_numbers_are_those_of_the_statistics(self, rows, tables):
        comparisons = compare(rows)
        assert [(entry.measure, entry.method) for entry in comparisons] == [
            (measure, method) for measure in ("DSC", "HD95") for method in tables]
        baseline = tables["nnUNetTrainer"]
        tests = {method: paired_wilcoxon(table, baseline) for method, table in tables.items()}
        adjusted = holm([tests["CPSTrainer"].p, tests["SACPSTrainer"].p])
        for method, table in tables.items():
            entry, spread = of(comparisons, method), Spread.of(table)
            assert (entry.mean, entry.sd, entry.sd_cases, entry.sd_seeds) == pytest.approx(
                (spread.mean, spread.sd, spread.sd_cases, spread.sd_seeds))
            assert entry.low < entry.mean < entry.high
            assert (entry.num_seeds, entry.num_cases, entry.num_scored, entry.num_missing) == (len(table), 9, 9, 0)
        for method, p_holm in zip(("CPSTrainer", "SACPSTrainer"), adjusted, strict=True):
            entry = of(comparisons, method)
            assert (entry.difference, entry.p, entry.p_holm, entry.num_pairs) == pytest.approx(
                (tests[method].difference, tests[method].p, p_holm, 9))
            assert entry.difference_low < entry.difference < entry.difference_high
        assert of(comparisons, "SACPSTrainer").p_holm == 2 * 2 / 2 ** 9
        hd95 = of(comparisons, "SACPSTrainer", "HD95")
        assert hd95.difference == pytest.approx(-20 * tests["SACPSTrainer"].difference)

    def test_the_baseline_is_not_compared_with_itself(self, rows):
        entry = of(compare(rows), "nnUNetTrainer")
        assert {entry.num_pairs, entry.difference, entry.difference_low, entry.p, entry.p_holm} == {None}
        # and does not count in Holm's correction
        only = [row for row in rows if row["method"] != "CPSTrainer"]
        entry = of(compare(only), "SACPSTrainer")
        assert entry.p == entry.p_holm

    def test_identical_runs(self):
        rows = rows_of("a", scores("a", 3)) + rows_of("b", scores("a", 3))
        entry = of(compare(rows, "a"), "b")
        assert (entry.difference, entry.p, entry.p_holm) == (0, 1, 1)

    def test_the_order_of_rows_does_not_matter(self, rows):
        methods = list(dict.fromkeys(row["method"] for row in rows))
        shuffled = [rows[i] for i in default_rng(0).permutation(len(rows))]
        shuffled.sort(key=lambda row: methods.index(row["method"]))
        assert compare(shuffled) == compare(rows)

    def test_same_rows_same_numbers(self, rows):
        assert compare(rows) == compare(rows)
        assert of(compare(rows), "CPSTrainer").low != of(compare(rows, seed=1), "CPSTrainer").low

    def test_it_survives_json(self, rows):
        assert compare(json.loads(json.dumps(rows))) == compare(rows)

    def test_cases_without_a_score_are_left_out_pair_by_pair(self, tables):
        tables["nnUNetTrainer"][:, 0] = NAN         # empty truth; only the other method predicts something
        tables["SACPSTrainer"][:, 1] = NAN
        tables["SACPSTrainer"][0, 2] = NAN
        rows = [row | {"DSC": None if math.isnan(row["DSC"]) else row["DSC"]}       # as evaluation.json has it
                for method, table in tables.items() for row in rows_of(method, table)]
        comparisons = compare(rows)
        ours, baseline = of(comparisons, "SACPSTrainer"), of(comparisons, "nnUNetTrainer")
        assert (ours.num_cases, ours.num_scored, ours.num_missing, ours.num_pairs) == (9, 8, 3, 7)
        assert (baseline.num_scored, baseline.num_missing) == (8, 3)
        assert of(comparisons, "CPSTrainer").num_pairs == 8
        pairs = [3, 4, 5, 6, 7, 8]
        expected = np.mean([*(tables["SACPSTrainer"][:, pairs].mean(0) - tables["nnUNetTrainer"][:, pairs].mean(0)),
                            tables["SACPSTrainer"][1, 2] - tables["nnUNetTrainer"][:, 2].mean()])
        assert ours.difference == pytest.approx(expected)

    def test_classes_are_compared_apart(self, rows, tables):
        others = [row for method, table in tables.items() for row in rows_of(method, 1 - table, "effusion")]
        comparisons = compare(rows + others)
        assert of(comparisons, "SACPSTrainer").difference == pytest.approx(
            -of(comparisons, "SACPSTrainer", class_name="effusion").difference)

    def test_a_class_that_hardly_occurs_costs_no_report(self, rows, tables):
        rare = {method: np.where(np.arange(9) == 4, table, NAN) for method, table in tables.items()}
        others = [row for method, table in rare.items() for row in rows_of(method, table, "rare")]
        comparisons = compare(rows + others)
        entry = of(comparisons, "SACPSTrainer", class_name="rare")
        assert entry.num_pairs == 1 and math.isnan(entry.p) and math.isnan(entry.p_holm) and math.isnan(entry.low)
        assert entry.mean == pytest.approx(tables["SACPSTrainer"][:, 4].mean())
        assert not math.isnan(of(comparisons, "SACPSTrainer").p)

    def test_tidy_rows_of_an_evaluation(self, tmp_path):
        results = {"cases": [{"case": "a", "class": "1", **dict.fromkeys(METRICS, 0.5)}], "summary": {}}
        assert tidy(results, "CPSTrainer", 7) == [
            {"method": "CPSTrainer", "seed": 7, "case": "a", "class": "1", **dict.fromkeys(METRICS, 0.5)}]

    def test_mean_over_seeds(self, rows, tables):
        means = mean_over_seeds(rows, "DSC", "lesion")
        assert list(means) == list(tables)
        assert means["CPSTrainer"]["case_3"] == pytest.approx(tables["CPSTrainer"][:, 3].mean())

    @pytest.mark.parametrize("change, message", [
        ("baseline", "baseline 'nnUnetTrainer'.*nnUNetTrainer, CPSTrainer"),
        ("missing", "seed 1 lacks 1 of 9 cases .case_2"), ("extra", "lacks 1 of 10 cases .case_x"),
        ("twice", "seed 0 has case case_0 twice"),
        ("one case", "two or more cases"), ("measure", "no measure 'NSD': there are DSC, HD95")])
    def test_bad_input(self, rows, change, message):
        settings = {}
        if change == "baseline":
            settings["baseline"] = "nnUnetTrainer"
        elif change == "missing":
            rows = [row for row in rows if (row["method"], row["seed"], row["case"]) != ("CPSTrainer", 1, "case_2")]
        elif change == "extra":
            rows.append(rows[0] | {"case": "case_x"})
        elif change == "twice":
            rows.append(dict(rows[0]))
        elif change == "one case":
            rows = [row for row in rows if row["case"] == "case_0"]
        elif change == "measure":
            settings["measures"] = ("DSC", "NSD")
        with pytest.raises(UserError, match=message) as error:
            compare(rows, **settings)
        assert "\n" not in str(error.value)


class TestTables:
    def test_overview(self, rows, tables):
        table = overview_table(compare(rows), "lesion", {"DSC": "DSC", "HD95": headings(1.0)["HD95"]})
        assert table.columns == ["method", "DSC ↑", "HD95 (mm) ↓"]
        assert [row[0] for row in table.rows] == list(tables)
        assert [[cell.bold for cell in row[1:]] for row in table.rows] == [[False] * 2, [False] * 2, [True] * 2]
        spread = Spread.of(tables["CPSTrainer"])
        assert table.rows[1][1] == Cell(f"{spread.mean:.3f} ± {spread.sd:.3f}",
                                        {"mean": pytest.approx(spread.mean), "sd": pytest.approx(spread.sd)})

    def test_one_measure(self, rows):
        comparisons = compare(rows)
        table = measure_table(comparisons, "lesion", "DSC", "DSC", {"SACPSTrainer": 0.6546})
        cells = {row[0].text: [cell.text for cell in row[1:]] for row in table.cells}
        assert len(table.columns) == len(table.rows[0]) and table.columns[-1] == "published"
        assert cells["nnUNetTrainer"][:2] == ["3", "9"] and cells["nnUNetTrainer"][5:] == ["–", "–", "–", "–"]
        entry = of(comparisons, "SACPSTrainer")
        assert cells["SACPSTrainer"][4:] == [
            f"[{entry.low:.3f}, {entry.high:.3f}]",
            f"+{entry.difference:.3f} [+{entry.difference_low:.3f}, +{entry.difference_high:.3f}]",
            "0.004", "0.008", "0.655"]
        assert "Difference to nnUNetTrainer" in table.caption and "2 comparison(s)" in table.caption
        assert len(measure_table(comparisons, "lesion", "DSC", "DSC").columns) == len(table.columns) - 1

    def test_what_is_missing_is_a_dash(self):
        rows = rows_of("a", np.full((1, 3), NAN)) + rows_of("b", np.array([[0.5, NAN, NAN]]))
        comparisons = compare(rows, "a")
        assert [[cell.text for cell in row] for row in overview_table(comparisons, "lesion", {"DSC": "DSC"}).cells] == [
            ["a", "–"], ["b", "0.500"]]
        assert [cell.text for cell in measure_table(comparisons, "lesion", "DSC", "DSC").cells[1]] == [
            "b", "1", "1 (+ 2 empty)", "0.500", "–", "–", "–", "–", "–"]


@pytest.mark.parametrize("best, is_bold", [(0.8, False), (0.8001, False), (0.81, True)])
def test_nobody_wins_a_tie(best, is_bold):
    from nnunet_synth.evaluation.tables import overview_table
    rows = [{"method": method, "seed": 0, "case": case, "class": "lesion", "DSC": score}
            for method, score in (("one", best), ("other", 0.8), ("worse", 0.5)) for case in "ab"]
    table = overview_table(compare_methods(rows, "other", ["DSC"], num_resamples=10), "lesion", {"DSC": "DSC"})
    assert [row[1].bold for row in table.rows] == [is_bold, False, False]
