"""Spread, intervals, paired tests and Holm's correction against SciPy, closed forms and enumeration."""

import math

import numpy as np
import pytest
from numpy.random import default_rng

from nnunet_synth.errors import UserError
from nnunet_synth.evaluation import statistics
from nnunet_synth.evaluation.statistics import Spread, bootstrap_interval, case_means, holm, paired_wilcoxon
from tests.reference import statistics as reference

NAN = math.nan


def table(num_seeds, num_cases, seed, case_sd=1.0, seed_sd=0.5, noise=0.3):
    """Scores [S, C] = 5 + case effect + seed effect + noise."""
    rng = default_rng(seed)
    return (5 + case_sd * rng.standard_normal(num_cases) + seed_sd * rng.standard_normal((num_seeds, 1))
            + noise * rng.standard_normal((num_seeds, num_cases)))


class TestSpread:
    @pytest.mark.parametrize("num_seeds", [1, 2, 5])
    def test_balanced_equals_analysis_of_variance(self, num_seeds):
        scores = table(num_seeds, 7, num_seeds)
        spread = Spread.of(scores)
        assert spread.mean == pytest.approx(scores.mean())
        assert spread.sd == pytest.approx(reference.total_sd(scores.T.tolist()))
        assert spread.sd_cases == pytest.approx(np.std(scores.mean(0), ddof=1))
        if num_seeds > 1:
            assert spread.sd_seeds == pytest.approx(np.std(scores.mean(1), ddof=1))
        else:
            assert math.isnan(spread.sd_seeds) and spread.sd == spread.sd_cases

    def test_by_hand(self):
        spread = Spread.of(np.array([[0.0, 4.0], [2.0, 6.0]]))      # case means 1 and 5, each with variance 2
        assert (spread.mean, spread.sd_cases) == (3.0, pytest.approx(math.sqrt(8)))
        assert spread.sd == pytest.approx(math.sqrt(8 + 0.5 * 2)) and spread.sd_seeds == pytest.approx(math.sqrt(2))

    def test_missing_scores(self):
        scores = np.array([[1.0, 4.0, NAN], [3.0, NAN, NAN]])
        np.testing.assert_equal(case_means(scores), [2, 4, NAN])
        spread = Spread.of(scores)
        assert spread.mean == 3 and spread.sd_cases == pytest.approx(math.sqrt(2))
        # numbers of scores 2 and 1: harmonic mean 4/3; the variance within is 2, from the first case alone
        assert spread.sd == pytest.approx(math.sqrt(2 + (1 - 3 / 4) * 2))
        nothing = Spread.of(np.full((2, 3), NAN))
        assert all(math.isnan(value) for value in (nothing.mean, nothing.sd, nothing.sd_cases, nothing.sd_seeds))

    def test_recovers_the_variance_that_made_the_scores(self):
        sds = [Spread.of(table(3, 40, seed, case_sd=1.0, seed_sd=0.0, noise=0.8)).sd for seed in range(200)]
        assert np.mean(np.square(sds)) == pytest.approx(1.0 + 0.8 ** 2, rel=0.03)


class TestBootstrap:
    def test_one_seed_is_scipys_percentile_bootstrap(self):
        from scipy.stats import bootstrap
        scores = default_rng(1).beta(6, 2, 25)
        theirs = bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=default_rng(2))
        ours = bootstrap_interval(scores[None], default_rng(3), num_resamples=20_000)
        width = np.ptp(theirs.confidence_interval)
        np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.02 * width)

    @pytest.mark.parametrize("difference", [False, True])
    def test_equals_drawing_in_loops(self, difference):
        methods = [table(3, 8, 4), table(2, 8, 5)][:1 + difference]
        methods[0][0, 2] = methods[0][:, 5] = NAN
        if difference:
            methods[1][1, 0] = methods[1][1, 2] = NAN
        theirs = reference.bootstrap_means([np.delete(method, 5, 1).tolist() for method in methods], default_rng(6),
                                           6_000)
        low, high = np.quantile(theirs, [0.025, 0.975])
        ours = bootstrap_interval(methods[0], default_rng(7), methods[1] if difference else None)
        np.testing.assert_allclose(ours, (low, high), atol=0.04 * (high - low))

    def test_variance_of_the_resampled_means_equals_the_closed_form(self):
        scores = table(3, 6, 8)
        means = statistics._resampled_means([scores], default_rng(9), 40_000)
        assert means.mean() == pytest.approx(scores.mean(), abs=0.01)
        assert means.var() == pytest.approx(reference.bootstrap_variance(scores), rel=0.03)

    def test_covers_the_true_mean(self):
        covered = [low <= 5 <= high for seed in range(300)
                   for low, high in [bootstrap_interval(table(3, 25, seed, seed_sd=0.1), default_rng(seed),
                                                        num_resamples=500)]]
        assert 0.91 < np.mean(covered) < 0.98

    def test_seeds_widen_the_interval(self):
        scores = table(4, 30, 10, case_sd=0.1, seed_sd=2.0, noise=0.1)
        crossed = np.ptp(bootstrap_interval(scores, default_rng(0)))
        of_cases = np.ptp(bootstrap_interval(scores.mean(0, keepdims=True), default_rng(0)))
        assert crossed > 10 * of_cases

    def test_a_difference_is_paired(self):
        scores = table(1, 30, 11, case_sd=3.0)
        other = scores - 0.5 + 0.01 * default_rng(0).standard_normal(scores.shape)
        low, high = bootstrap_interval(scores, default_rng(0), other)
        assert 0.49 < low < high < 0.51

    def test_cases_without_a_score_change_nothing(self):
        scores, other = table(3, 9, 12), table(2, 9, 13)
        scores[:, 4] = NAN
        other[:, 6] = NAN
        kept = [0, 1, 2, 3, 5, 7, 8]
        assert bootstrap_interval(scores, default_rng(5), other) == bootstrap_interval(
            scores[:, kept], default_rng(5), other[:, kept])

    def test_same_generator_same_interval(self):
        scores = table(3, 9, 12)
        assert bootstrap_interval(scores, default_rng(5)) == bootstrap_interval(scores, default_rng(5))
        assert bootstrap_interval(scores, default_rng(5)) != bootstrap_interval(scores, default_rng(6))

    @pytest.mark.parametrize("scores", [[[0.5]], [[NAN, NAN, NAN]], [[NAN, 0.5], [NAN, 0.7]]])
    def test_one_case_has_no_interval(self, scores):
        assert all(math.isnan(limit) for limit in bootstrap_interval(np.array(scores), default_rng(0)))

    def test_equal_scores_have_an_interval_without_width(self):
        assert bootstrap_interval(np.full((2, 5), 0.25), default_rng(0)) == (0.25, 0.25)


class TestPairedTest:
    @pytest.mark.parametrize("num_cases", [6, 9, 12])
    @pytest.mark.parametrize("decimals", [1, 9])       # ties and zeros; none
    def test_equals_enumeration(self, num_cases, decimals):
        first, second = (table(3, num_cases, seed + num_cases).round(decimals) for seed in (0, 1))
        test = paired_wilcoxon(first, second)
        difference = (first.mean(0) - second.mean(0)).round(9)
        assert test.p == pytest.approx(reference.signed_rank_p(difference))
        assert test.num_pairs == num_cases and test.difference == pytest.approx(difference.mean())

    def test_equals_scipy_on_many_cases(self):
        from scipy.stats import wilcoxon
        for num_cases in (30, 80):
            first, second = table(2, num_cases, 1), table(4, num_cases, 2)
            assert paired_wilcoxon(first, second).p == wilcoxon(first.mean(0), second.mean(0)).pvalue

    def test_zeros_are_dropped_and_the_rest_is_exact(self):
        first = np.zeros((1, 40))
        first[0, :6] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
        test = paired_wilcoxon(first, np.zeros((1, 40)))
        assert (test.num_pairs, test.p) == (40, 2 / 2 ** 6)

    def test_identical_runs_give_one(self):
        scores = table(3, 20, 3)
        assert paired_wilcoxon(scores, scores.copy()).p == 1
        # in another order of the seeds the means differ in their last bit
        assert (scores.mean(0) != scores[[2, 0, 1]].mean(0)).any()
        assert paired_wilcoxon(scores, scores[[2, 0, 1]]).p == 1

    def test_seeds_are_averaged_first(self):
        first, second = table(1, 8, 1), table(1, 8, 2)
        repeated = paired_wilcoxon(first.repeat(10, axis=0), second)
        assert repeated.p == paired_wilcoxon(first, second).p

    def test_cases_without_a_score_are_no_pairs(self):
        first, second = table(2, 6, 1), table(2, 6, 2)
        first[:, 0], second[:, 1], first[0, 2] = NAN, NAN, NAN
        assert paired_wilcoxon(first, second).num_pairs == 4
        with pytest.raises(UserError, match="two or more cases.*here are 1") as error:
            paired_wilcoxon(first[:, :3], second[:, :3])
        assert "\n" not in str(error.value)


class TestHolm:
    @pytest.mark.parametrize("seed", range(6))
    def test_equals_closed_testing(self, seed):
        p_values = default_rng(seed).choice([0.001, 0.01, 0.02, 0.02, 0.04, 0.3, 0.9], seed + 1).tolist()
        assert holm(p_values) == pytest.approx(reference.holm(p_values))

    def test_by_hand(self):
        assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
        assert holm([0.2]) == [0.2] and holm([]) == [] and holm([0.9, 0.8]) == [1, 1]

    def test_what_was_not_tested_does_not_count(self):
        adjusted = holm([0.04, NAN, 0.01])
        assert adjusted[::2] == pytest.approx([0.04, 0.02]) and math.isnan(adjusted[1])


def test_no_p_below_six_pairs():
    """The best that five pairs can give is 0.0625, six 0.031."""
    from nnunet_synth.evaluation.statistics import MIN_PAIRS
    better = np.arange(1.0, MIN_PAIRS + 1)[None]
    five = paired_wilcoxon(better[:, 1:], np.zeros((1, MIN_PAIRS - 1)))
    assert math.isnan(five.p) and (five.num_pairs, five.difference) == (5, 4)
    assert paired_wilcoxon(better, np.zeros((1, MIN_PAIRS))).p == 2 / 2 ** 6
