"""Spread, bootstrap, signed-rank test and Holm's correction, by enumeration and loops."""

import itertools
import math

import numpy as np


def total_sd(scores):
    """Of one-way random effects, from the sums of squares of a balanced table (lists of the scores of each case)."""
    num_cases, num_seeds = len(scores), len(scores[0])
    grand = sum(map(sum, scores)) / (num_cases * num_seeds)
    means = [sum(case) / num_seeds for case in scores]
    between = num_seeds * sum((mean - grand) ** 2 for mean in means) / (num_cases - 1)
    within = sum((score - mean) ** 2 for case, mean in zip(scores, means, strict=True) for score in case)
    within = within / (num_cases * (num_seeds - 1)) if num_seeds > 1 else 0.0
    between_component = (between - within) / num_seeds
    return math.sqrt(between_component + within)


def bootstrap_means(methods, rng, num_resamples):
    """Draw cases and, for each method, seeds; average over drawn seeds, then over drawn cases that have scores."""
    num_cases = len(methods[0][0])
    means = []
    for _ in range(num_resamples):
        cases = rng.integers(num_cases, size=num_cases)
        seeds = [rng.integers(len(method), size=len(method)) for method in methods]
        values = []
        for case in cases:
            of_methods = []
            for method, drawn in zip(methods, seeds, strict=True):
                scores = [method[seed][case] for seed in drawn if not math.isnan(method[seed][case])]
                of_methods.append(sum(scores) / len(scores) if scores else math.nan)
            value = of_methods[0] - (of_methods[1] if len(of_methods) == 2 else 0)
            if not math.isnan(value):
                values.append(value)
        if values:
            means.append(sum(values) / len(values))
    return np.array(means)


def bootstrap_variance(scores):
    """Closed form for the mean of a full table [S, C]: drawing n of n gives E[w_i w_j] = [i = j] + 1 − 1/n."""
    num_seeds, num_cases = scores.shape
    total = 0.0
    for (s, c), (t, d) in itertools.product(itertools.product(range(num_seeds), range(num_cases)), repeat=2):
        together = ((s == t) + 1 - 1 / num_seeds) * ((c == d) + 1 - 1 / num_cases)
        total += scores[s, c] * scores[t, d] * (together - 1)
    return total / (num_seeds * num_cases) ** 2


def signed_rank_p(differences):
    """Two-sided, over all 2ⁿ signs; zeros dropped, ties share their mean rank."""
    differences = [difference for difference in differences if difference != 0]
    sizes = sorted(map(abs, differences))
    ranks = [np.mean([i + 1 for i, size in enumerate(sizes) if size == abs(d)]) for d in differences]
    observed = sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0)
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
            for signs in itertools.product((0, 1), repeat=len(ranks))]
    below = sum(value <= observed + 1e-9 for value in sums) / len(sums)
    above = sum(value >= observed - 1e-9 for value in sums) / len(sums)
    return min(1.0, 2 * min(below, above))


def holm(p_values):
    """Closed testing: a hypothesis falls when every intersection with it falls by Bonferroni's test."""
    everyone = range(len(p_values))
    subsets = [subset for size in range(1, len(p_values) + 1) for subset in itertools.combinations(everyone, size)]
    return [max(min(1.0, len(subset) * min(p_values[j] for j in subset)) for subset in subsets if i in subset)
            for i in everyone]
