"""Coverage of the confidence intervals and family-wise error of the adjusted p-values, simulated.

    python benchmarks/inference.py --json inference.json     10,000 trials: a few minutes
    python benchmarks/inference.py --quick                   1,000 trials

Coverage is that of `paired_test` for differences of one comparison whose true mean is known. The
family-wise error is the share of families without any effect in which an adjusted p is at most
0.05; a family is 2 treatments that share the runs of their baseline, compared in 4 measures that
depend on one another. docs/statistics.md has the table.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bnstudy.study.inference import holm, max_t_adjusted, paired_test
from bnstudy.study.inference.columns import FloatArray
from bnstudy.study.inference.paired import MIN_PAIRS_TO_FLIP

LEVEL = 0.05
TREATMENTS, MEASURES = 2, 4
UNIT = 0.5  # distance between rounded values, in standard deviations

Draw = Callable[[np.random.Generator, tuple[int, ...]], FloatArray]

# Distributions of mean 0.
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "Student's t, 3 degrees of freedom": lambda generator, shape: generator.standard_t(
        3, size=shape
    ),
    "exponential": lambda generator, shape: generator.exponential(size=shape) - 1,
}
TIES = "normal, rounded to half a standard deviation"
CASES = [
    ("normal", 4),
    *(
        (name, n)
        for name in ("normal", "Student's t, 3 degrees of freedom", TIES)
        for n in (6, 8, 16)
    ),
    ("normal", 40),
    *(("exponential", n) for n in (4, 6, 8, 16, 40)),
]


def coverage(name: str, n: int, trials: int, generator: np.random.Generator) -> dict[str, float]:
    """Compute the share of intervals that contain the true mean.

    Also counts the intervals that disagree with their p-value at 5 %.

    Args:
        name: Name of the distribution.
        n: Number of pairs.
        trials: Number of comparisons.
        generator: Generator of the random numbers.
    """
    true_mean = np.zeros(trials)
    if name == TIES:  # rounding leaves the mean as it is, and it lies anywhere between two units
        true_mean = generator.uniform(-UNIT, UNIT, trials)
        differences = UNIT * np.round((true_mean + generator.normal(size=(n, trials))) / UNIT)
    else:
        differences = DISTRIBUTIONS[name](generator, (n, trials))
    found = paired_test(differences)
    is_covered = (found.low <= true_mean) & (true_mean <= found.high)
    leaves_out_0 = (found.low > 0) | (found.high < 0)
    disagrees = leaves_out_0 != (found.p <= LEVEL)
    return {"coverage": float(is_covered.mean()), "disagreements": int(disagrees.sum())}


def family_wise_error(name: str, n: int, trials: int, generator: np.random.Generator) -> float:
    """Compute the share of families without an effect in which an adjusted p is at most 5 %.

    Args:
        name: Name of the distribution of the runs' numbers.
        n: Number of pairs.
        trials: Number of families.
        generator: Generator of the random numbers.
    """
    return float(np.mean([_smallest_p(name, n, generator) <= LEVEL for _ in range(trials)]))


def _smallest_p(name: str, n: int, generator: np.random.Generator) -> float:
    """Simulate n runs of each treatment, with correlated measures; return the smallest p."""
    draw = DISTRIBUTIONS["normal" if name == TIES else name]
    own = draw(generator, (1 + TREATMENTS, n, MEASURES))
    runs = own + draw(generator, (1 + TREATMENTS, n, 1))
    if name == TIES:
        runs = UNIT * np.round(runs / UNIT)
    differences = runs[1:] - runs[0]
    if n >= MIN_PAIRS_TO_FLIP:
        return float(np.nanmin(max_t_adjusted(list(differences))))
    p = np.concatenate([paired_test(part).p for part in differences])
    return float(holm(p[~np.isnan(p)]).min(initial=1))


def simulated(trials: int) -> Iterator[dict[str, Any]]:
    """Yield the results of each case."""
    for seed, (name, n) in enumerate(CASES):
        generator = np.random.default_rng(seed)
        yield {
            "differences": name,
            "pairs": n,
            # With few pairs, more comparisons take no time and make the coverage more precise.
            **coverage(name, n, trials * (10 if n < 10 else 1), generator),
            "family_wise_error": family_wise_error(name, n, trials, generator),
        }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1,000 trials instead of 10,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the numbers")
    options = parser.parse_args()
    trials = 1_000 if options.quick else 10_000
    found = []
    print("| differences | pairs | coverage | family-wise error |\n| --- | --- | --- | --- |")
    for case in simulated(trials):
        found.append(case)
        print(
            f"| {case['differences']} | {case['pairs']} | {case['coverage']:.1%} "
            f"| {case['family_wise_error']:.1%} |",
            flush=True,
        )
    print(
        f"Intervals and p on different sides of 5 %: {sum(one['disagreements'] for one in found)}"
    )
    if options.json:
        options.json.write_text(json.dumps({"trials": trials, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
