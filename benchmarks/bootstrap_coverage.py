"""How often does the study's 95 % interval hold the true mean?

    python -m benchmarks.bootstrap_coverage

Normal scores: true mean + an effect of the case (sd 1) + one of the seed + noise (sd 0.3), in a table of seeds × cases.
Prints the coverage for each number of seeds and cases and size of the seeds' effect, and writes
benchmarks/results/bootstrap_coverage_cpu.json.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.record import write_result
from nnunet_synth.evaluation.statistics import bootstrap_interval

CASES = (5, 10, 20, 50)
SEEDS = (1, 3, 5)
SEED_SDS = (0.0, 0.1, 0.3)
NOISE = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=2000, help="random tables a cell (default: 2000)")
    parser.add_argument("--resamples", type=int, default=400, help="bootstrap resamples a table (default: 400)")
    args = parser.parse_args()
    rows = []
    print(f"{'sd of seeds':>11}  {'seeds':>5}  " + "  ".join(f"{cases:>4} cases" for cases in CASES))
    for seed_sd in SEED_SDS:
        for seeds in SEEDS:
            found = [coverage(seeds, cases, seed_sd, args.tables, args.resamples) for cases in CASES]
            rows += [{"seed_sd": seed_sd, "seeds": seeds, "cases": cases, "coverage": share}
                     for cases, share in zip(CASES, found, strict=True)]
            print(f"{seed_sd:>11}  {seeds:>5}  " + "  ".join(f"{share:>10.3f}" for share in found), flush=True)
    write_result({"tables": args.tables, "resamples": args.resamples, "case_sd": 1.0, "noise_sd": NOISE, "rows": rows},
                 "bootstrap_coverage", torch.device("cpu"))


def coverage(num_seeds: int, num_cases: int, seed_sd: float, num_tables: int, num_resamples: int) -> float:
    """Share of the tables whose interval holds the true mean, 0."""
    generator = np.random.default_rng([num_seeds, num_cases, round(100 * seed_sd)])
    held = 0
    for _ in range(num_tables):
        scores = (generator.standard_normal(num_cases) + seed_sd * generator.standard_normal((num_seeds, 1))
                  + NOISE * generator.standard_normal((num_seeds, num_cases)))
        low, high = bootstrap_interval(scores, generator, num_resamples=num_resamples)
        held += low <= 0 <= high
    return held / num_tables


if __name__ == "__main__":
    main()
