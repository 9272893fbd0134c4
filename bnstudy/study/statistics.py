"""How much treatments differ from a baseline, and how sure that is.

Runs that differ in nothing but the treatment are a pair. The pairs are the sample: n is their
number, and what is resampled, flipped and averaged is the difference within a pair. Functions of
`differences` take pairs x comparisons; a NaN is a pair without a value, left out of that comparison
alone.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import linalg, stats

from bnstudy.study.layers import Indices, Mask, Numbers, all_columns, shared_columns, wide
from bnstudy.study.load import Study

CONFIDENCE = 0.95
RESAMPLES = 2_000  # of a bootstrap
FEWEST_PAIRS = 3  # for an interval
FEWEST_TO_BOOTSTRAP = 7  # degrees of freedom
MOST_EXACT = 16  # pairs of which all 2^n flips are tried
FLIPS = 99_999  # at random at most, where there are more
ENOUGH = 100  # as extreme ones, of flips at random
PERMUTATIONS = 999  # at most
BLOCK = 2_000  # flips or comparisons at once, so that memory is bounded
CACHED = 250  # comparisons that are bootstrapped at once, so that they stay in the cache


def averages(study: Study, *, every_epoch: bool = False, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean and standard deviation over runs of each treatment.

    Args:
        study: Whose runs are comparable.
        every_epoch: At each epoch instead of the last one of each run.
        by: Columns of `study.runs`, such as depth, whose values are kept apart.

    Returns:
        One row each: `by`, treatment, split, metric, layers, place, place_index, site, (epoch,) n,
        the runs that have a finite value, mean, and sd, of n - 1 degrees of freedom. The layers are
        those of all runs at the point, of `shared_columns`.
    """
    keys, values = all_columns(study, every_epoch=every_epoch)
    tables = []
    for at, shared in _shared_columns(study, keys, by):
        for point, rows in _points(study.results.loc[at, [*by, "treatment"]]):
            sample = values[np.ix_(rows, shared)]
            centre = mean(sample)
            n = np.isfinite(sample).sum(axis=0)
            sd = spread(sample)
            tables.append(keys[shared].assign(**point, n=n, mean=centre, sd=sd).loc[n > 0])
    found: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return found


class Pairs(NamedTuple):
    """Runs of a treatment beside those of the baseline that they are paired with.

    Attributes:
        treatment: Rows of `Study.results`, one a pair.
        baseline: Rows of `Study.results`, one a pair.
        grid: The point of the grid that each pair is at.
        unpaired: How many runs of the treatment have no partner.
        identical: How many pairs there would be, were their runs not the same, digit for digit.
    """

    treatment: Indices
    baseline: Indices
    grid: Indices
    unpaired: int
    identical: int = 0


def pairs(study: Study, treatment: str, baseline: str) -> Pairs:
    """The pairs of runs of two treatments; none where they are identical (`Study.identical`)."""
    results = study.results[["treatment", "pair", "grid"]].reset_index(names="row")
    ours, theirs = (results[results["treatment"] == name] for name in (treatment, baseline))
    both = ours.merge(theirs, on="pair", suffixes=("", "_baseline")).sort_values("pair")
    unpaired, identical = len(ours) - len(both), 0
    if study.identical.get(treatment, treatment) == study.identical.get(baseline, baseline):
        both, identical = both[:0], len(both)
    return Pairs(
        both["row"].to_numpy(),
        both["row_baseline"].to_numpy(),
        pd.factorize(both["grid"])[0],
        unpaired,
        identical,
    )


def effects(study: Study, baseline: str | None = None, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """Paired differences to a baseline after the last epoch, with their uncertainty.

    Args:
        study: Whose runs are comparable.
        baseline: A treatment; None: `Study.baseline`'s choice.
        by: Columns of `study.runs`, such as depth, at each of whose values the pairs are compared
            by themselves.

    Returns:
        One row a comparison: `by`, treatment, baseline, split, metric, layers, place, place_index,
        site (the layers are those of all runs at the point, of `shared_columns`); n, the pairs;
        undefined, the pairs left out because one of their runs has no value; diverged,
        the pairs of which a run diverged; baseline_mean and treatment_mean; difference, their mean
        difference, and low and high, its interval (`interval`); p (`sign_flip`), smallest_p that n
        pairs can give, and p_holm, corrected by Holm for all tests of a family: all treatments,
        metrics and layers of one split, or all those of the whole model's loss and accuracy;
        family, how many tests that is; cohens_d and rank_biserial.
    """
    baseline = study.baseline(baseline)
    keys, values = all_columns(study)
    diverged = study.results["status"].to_numpy() == "diverged"
    alike = defaultdict(list)  # compared at once: as many pairs at the same points of the grid
    for number, (identity, matched, shared) in enumerate(_comparisons(study, keys, baseline, by)):
        alike[matched.grid.tobytes()].append((number, identity, matched, shared))
    tables = []
    for comparisons in alike.values():
        numbers, identities, samples, columns = zip(*comparisons, strict=True)
        chosen = list(zip(samples, columns, strict=True))
        ours = np.hstack([values[np.ix_(sample.treatment, shared)] for sample, shared in chosen])
        theirs = np.hstack([values[np.ix_(sample.baseline, shared)] for sample, shared in chosen])
        lost = [
            (diverged[sample.treatment] | diverged[sample.baseline]).sum() for sample in samples
        ]
        counts = [shared.sum() for shared in columns]
        table = pd.concat(
            [
                keys[shared].assign(**identity)
                for identity, shared in zip(identities, columns, strict=True)
            ],
            ignore_index=True,
        )
        found = _compare(ours, theirs, samples[0].grid)
        found["diverged"] = np.repeat(lost, counts)
        tables.append(table.join(found).set_index(np.repeat(numbers, counts)))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables).sort_index(kind="stable")
    table = table[table["n"] + table["undefined"] > 0].reset_index(drop=True)
    return _corrected(table)


def _comparisons(
    study: Study, keys: pd.DataFrame, baseline: str, by: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Pairs, Mask]]:
    """What is compared, point and treatments; its pairs, their points of the grid from 0; by what.

    The last is which columns all runs at the point share.
    """
    shared: dict[int, Mask] = {}  # by row of the results
    for at, columns in _shared_columns(study, keys, by):
        shared |= dict.fromkeys(at.tolist(), columns)
    none = np.zeros(len(keys), dtype=bool)
    for treatment in study.treatments:
        if treatment == baseline:
            continue
        matched = pairs(study, treatment, baseline)
        points = study.results.loc[matched.treatment, list(by)].reset_index(drop=True)
        for point, rows in _points(points):
            grid = np.unique(matched.grid[rows], return_inverse=True)[1]
            sample = Pairs(matched.treatment[rows], matched.baseline[rows], grid, 0)
            identity = point | {"treatment": treatment, "baseline": baseline}
            yield identity, sample, shared[sample.treatment[0]] if len(rows) else none


def _shared_columns(
    study: Study, keys: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[Indices, Mask]]:
    """The rows of the results at each point, and the columns that they share."""
    for _, rows in _points(study.results[list(by)]):
        yield rows, shared_columns(study, keys, rows)


def _points(points: pd.DataFrame) -> Iterator[tuple[dict[str, Any], Indices]]:
    """Each point of a grid, and the rows that are there."""
    if points.columns.empty:
        yield {}, np.arange(len(points))
        return
    for value, rows in points.groupby(list(points.columns), dropna=False):
        yield dict(zip(points.columns, value, strict=True)), rows.index.to_numpy()


def _compare(ours: Numbers, theirs: Numbers, grid: Indices) -> pd.DataFrame:
    differences = ours - theirs
    measured = ~(np.isnan(ours) & np.isnan(theirs))
    differences[~np.isfinite(differences)] = np.nan
    known = np.isfinite(differences)
    n = known.sum(axis=0)
    low, high = interval(differences, grid)
    return pd.DataFrame(
        {
            "n": n,
            "undefined": (measured & ~known).sum(axis=0),
            "baseline_mean": mean(np.where(known, theirs, np.nan)),
            "treatment_mean": mean(np.where(known, ours, np.nan)),
            "difference": mean(differences),
            "low": low,
            "high": high,
            "p": sign_flip(differences),
            "smallest_p": np.where(n > 0, smallest_p(n), np.nan),
            "cohens_d": cohens_d(differences),
            "rank_biserial": rank_biserial(differences),
        }
    )


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    families = table["split"].where(table["place_index"] > 0, "whole model")
    table["p_holm"] = np.nan
    table["family"] = 0
    for _, rows in table[table["p"].notna()].groupby(families):
        table.loc[rows.index, "p_holm"] = holm(rows["p"].to_numpy())
        table.loc[rows.index, "family"] = len(rows)
    return table


def holm(p: Numbers) -> Numbers:
    """Correct p for all tests of a family (Holm 1979): float64, each at most 1.

    Args:
        p: Of each test.
    """
    order = p.argsort()
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def curves(study: Study, baseline: str | None = None) -> pd.DataFrame:
    """Paired differences to a baseline at each epoch, with intervals; nothing is tested.

    Args:
        study: Whose runs are comparable.
        baseline: A treatment; None: `Study.baseline`'s choice.

    Returns:
        One row a comparison: treatment, baseline, split, metric, layers, place, place_index, site,
        epoch (of networks with so many layers at the site, or of all, as in `all_columns`), n,
        difference, low, high: `interval` without a bootstrap, each epoch's own, not of the
        whole curve.
    """
    baseline = study.baseline(baseline)
    keys, values = all_columns(study, every_epoch=True)
    tables = []
    for treatment in study.treatments:
        if treatment == baseline:
            continue
        matched = pairs(study, treatment, baseline)
        differences = values[matched.treatment] - values[matched.baseline]
        differences[~np.isfinite(differences)] = np.nan
        low, high = interval(differences, matched.grid, bootstrap=False)
        tables.append(
            keys.assign(
                treatment=treatment,
                baseline=baseline,
                n=np.isfinite(differences).sum(axis=0),
                difference=mean(differences),
                low=low,
                high=high,
            )
        )
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table[table["n"] > 0].reset_index(drop=True)


def mean(values: Numbers) -> Numbers:
    """Of each column, what is known of it; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        found: Numbers = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
    return found


def spread(values: Numbers) -> Numbers:
    """Standard deviation of what is known of each column; NaN of fewer than two."""
    known = np.isfinite(values)
    n = known.sum(axis=0)
    squares = np.where(known, values - mean(values), 0) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n > 1, np.sqrt(squares.sum(axis=0) / (n - 1)), np.nan)


def interval(
    differences: Numbers, grid: Indices | None = None, *, bootstrap: bool = True
) -> tuple[Numbers, Numbers]:
    """Interval of the mean difference: studentized bootstrap, or Student's t with few pairs.

    Both reach as many standard errors from the mean as t = (mean - true mean) / standard error may
    be. The distribution of t is bootstrapped (Efron and Tibshirani 1993, chapter 12.5): simulated,
    it covers 92 to 95 % with 8 to 16 normal, exponential or t-distributed (3 degrees of
    freedom) differences, where percentile and BCa cover 84 to 92 %. With fewer than 7 degrees of
    freedom a bootstrap knows next to nothing of t's tails (with 4 pairs it is twice as wide as
    Student's t, and one time in ten five times); there t is Student's, as of normal differences. So
    it is with fewer than 8 different differences, such as 0 in all pairs but a few: most resamples
    of these hardly vary, and t has no bounds.

    Where each point of the grid has two pairs or more, these are resampled by themselves (the
    stratified bootstrap of Agarwal et al. 2021, arXiv 2108.13264): the interval is of the mean over
    these very points. Otherwise all pairs are resampled together. Degrees of freedom are
    Satterthwaite's (1946): pairs less such points, and fewer where one point's differences vary
    more than the others', as where one of its networks does not train.

    Args:
        differences: Pairs x comparisons.
        grid: The point of the grid of each pair; None: all are at the same.
        bootstrap: False: Student's t however many pairs there are, which takes no time.

    Returns:
        Its ends, for each comparison; NaN with fewer than 3 pairs, and where all differ by the
        same, which says nothing of how they might.
    """
    low, high = np.full((2, differences.shape[1]), np.nan)
    for columns, sample, points in _blocks(differences, grid):
        n = len(sample)
        if n < FEWEST_PAIRS:
            continue
        strata = [np.flatnonzero(points == point) for point in np.unique(points)]
        if min(map(len, strata)) < 2:
            strata = [np.arange(n)]
        # Of differences to each stratum's mean, so that squares lose no digits.
        own = [sample[stratum] - sample[stratum].mean(axis=0) for stratum in strata]
        variances = np.array([part.var(axis=0, ddof=1) * len(part) / n**2 for part in own])
        freedom = _freedom(variances, np.array([[len(part) - 1] for part in own]))
        tails = [(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2]
        ends = stats.t.ppf(np.array(tails)[:, None], freedom)
        several = np.minimum(freedom, _distinct(sample) - 1) >= FEWEST_TO_BOOTSTRAP
        if bootstrap and several.any():
            ends[:, several] = _bootstrapped_t([part[:, several] for part in own], tails)
        error = np.sqrt(variances.sum(axis=0))
        error[error <= 1e-9 * np.abs(sample).max(axis=0)] = np.nan
        low[columns], high[columns] = sample.mean(axis=0) - ends * error
    return low, high


def _freedom(variances: Numbers, freedoms: Indices) -> Numbers:
    """Degrees of freedom of a sum of variances (Satterthwaite 1946), strata x comparisons."""
    with np.errstate(invalid="ignore"):
        found: Numbers = variances.sum(axis=0) ** 2 / (variances**2 / freedoms).sum(axis=0)
    return found.round(6)


def _distinct(sample: Numbers) -> Indices:
    """How many different values each column has."""
    steps: Indices = (np.diff(np.sort(sample, axis=0), axis=0) > 0).sum(axis=0)
    return 1 + steps


def _bootstrapped_t(strata: Sequence[Numbers], tails: Sequence[float]) -> Numbers:
    """Quantiles of means in standard errors, of samples whose mean is 0: tails x comparisons."""
    generator = np.random.default_rng(0)
    n = sum(map(len, strata))
    shares = [resample(generator, len(own)).T for own in strata]
    count = strata[0].shape[1]
    found = np.empty((len(tails), count))
    for start in range(0, count, CACHED):
        chosen = slice(start, start + CACHED)
        moved, variance = np.zeros((2, min(CACHED, count - start), RESAMPLES))
        for own, share in zip(strata, shares, strict=True):
            size, values = len(own), np.ascontiguousarray(own[:, chosen].T) * (len(own) / n)
            drawn = values @ share
            squares = values**2 @ share
            squares -= drawn**2
            variance += np.maximum(squares, 0, out=squares) / (size - 1)
            moved += drawn
        with np.errstate(divide="ignore", invalid="ignore"):
            moved /= np.sqrt(variance)
        moved[np.isnan(moved)] = 0
        found[:, chosen] = np.quantile(moved, tails, axis=1, method="nearest", overwrite_input=True)
    return found


def resample(generator: np.random.Generator, size: int) -> Numbers:
    """How large a share each of `size` has in each resample, resamples x size."""
    chosen = generator.integers(size, size=(RESAMPLES, size))
    chosen += size * np.arange(RESAMPLES)[:, None]
    return np.bincount(chosen.ravel(), minlength=RESAMPLES * size).reshape(-1, size) / size


def sign_flip(differences: Numbers) -> Numbers:
    """Two-sided p of the paired permutation test of no difference, by the mean.

    Under the hypothesis that the treatment does nothing, each difference might as well have the
    other sign. With up to 16 pairs all 2^n flips are tried, and p is exact. With more, flips are
    drawn until 100 were as extreme, 99,999 at most (Besag and Clifford 1991), and p is
    (1 + as extreme ones) / (1 + drawn ones).

    Args:
        differences: Pairs x comparisons.

    Returns:
        In [smallest_p, 1], for each comparison; NaN without a pair.
    """
    p = np.full(differences.shape[1], np.nan)
    for columns, sample, _ in _blocks(differences):
        n = len(sample)
        if n == 0:
            continue
        total = sample.sum(axis=0)
        reached = np.abs(total) - 1e-9 * np.abs(sample).sum(axis=0)  # equal but for rounding
        as_extreme, flips = np.zeros((2, len(columns)))
        undecided = np.arange(len(columns))
        for flipped in _flips(n):
            sums = total[undecided] - 2 * (flipped @ sample[:, undecided])
            as_extreme[undecided] += (np.abs(sums) >= reached[undecided]).sum(axis=0)
            flips[undecided] += len(flipped)
            if n > MOST_EXACT:
                undecided = undecided[as_extreme[undecided] < ENOUGH]
                if not undecided.size:
                    break
        p[columns] = as_extreme / flips if n <= MOST_EXACT else (1 + as_extreme) / (1 + flips)
    return p


def _flips(n: int) -> Iterator[Numbers]:
    """Which pairs are flipped, 1 or 0, flips x pairs in blocks; all of them, but for mirrors."""
    if n <= MOST_EXACT:
        every = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
        yield from np.array_split(every.astype(float), -(-len(every) // BLOCK))
        return
    generator = np.random.default_rng(0)
    for start in range(0, FLIPS, BLOCK):
        size = min(BLOCK, FLIPS - start)
        drawn = np.unpackbits(np.frombuffer(generator.bytes(size * n // 8 + 1), np.uint8))
        yield drawn[: size * n].reshape(size, n).astype(float)


def smallest_p(n: Indices) -> Numbers:
    """The smallest p that `sign_flip` can give with n pairs."""
    return np.where(n <= MOST_EXACT, 2.0 ** (1 - np.minimum(n, MOST_EXACT)), 1 / (1 + FLIPS))


def cohens_d(differences: Numbers) -> Numbers:
    """Mean difference in standard deviations of the differences (Cohen 1988's d_z)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean(differences) / spread(differences)


def rank_biserial(differences: Numbers) -> Numbers:
    """Matched-pairs rank biserial correlation (Kerby 2014, Wilcoxon's ranks).

    Of the sum of the ranks of the differences' sizes, the share of positive differences less that
    of negative ones; pairs without a difference have no rank.

    Args:
        differences: Pairs x comparisons.

    Returns:
        In [-1, 1], for each comparison; NaN where no pair differs.
    """
    sizes = np.where(differences == 0, np.nan, np.abs(differences))
    ranks = np.nan_to_num(stats.rankdata(sizes, axis=0, nan_policy="omit"))
    with np.errstate(invalid="ignore"):
        found: Numbers = np.nansum(np.sign(differences) * ranks, axis=0) / ranks.sum(axis=0)
    return found


def _blocks(
    differences: Numbers, grid: Indices | None = None
) -> Iterator[tuple[Indices, Numbers, Indices]]:
    """Columns that have the same pairs: their numbers, the differences, the points of the grid."""
    points = np.zeros(len(differences), dtype=np.intp) if grid is None else grid
    known = np.isfinite(differences)
    columns: dict[bytes, list[int]] = defaultdict(list)  # of the same pairs
    for column, pattern in enumerate(known.T):
        columns[pattern.tobytes()].append(column)
    for same in map(np.array, columns.values()):
        rows = known[:, same[0]]
        for start in range(0, len(same), BLOCK):
            block = same[start : start + BLOCK]
            yield block, differences[np.ix_(rows, block)], points[rows]


def factors(
    study: Study, baseline: str | None = None, *, of: Sequence[str] = ("depth", "width")
) -> pd.DataFrame:
    """Does the treatment's effect depend on depth and width? A permutation analysis of variance.

    A treatment is within pairs, depth and width are between them. So the interaction of treatment
    and depth is a main effect of depth on the differences within pairs, and that of all three the
    interaction of depth and width on them: what a mixed model with an intercept of each pair's own
    tests. Factors are categories. Sums of squares are of type II; p comes of permuted residuals of
    the model without the term (Freedman and Lane 1983), so that it needs no normal distribution.

    Args:
        study: Whose runs are comparable.
        baseline: A treatment; None: `Study.baseline`'s choice.
        of: Columns of `study.runs`; those that do not vary are left out.

    Returns:
        One row a term: treatment, baseline, split, metric, place, place_index, site, term (such as
        "treatment x depth"), n, the pairs; f, df, df_residual, eta_squared (partial), p (at least
        1/1000), and p_holm, corrected for the tests of that term and split. Comparisons without
        residual degrees of freedom, as of one seed, have no row.
    """
    baseline = study.baseline(baseline)
    keys, values = wide(study)
    results = study.results
    varying = [name for name in of if results[name].nunique() > 1]
    terms = [frozenset(term) for size in (1, 2) for term in combinations(varying, size)]
    tables = []
    for treatment in study.treatments if terms else []:
        if treatment == baseline:
            continue
        matched = pairs(study, treatment, baseline)
        differences = values[matched.treatment] - values[matched.baseline]
        levels = results.loc[matched.treatment, varying].astype(str).reset_index(drop=True)
        for columns, sample, chosen in _blocks(differences, np.arange(len(differences))):
            for term in terms:
                models = [
                    _basis(levels.loc[chosen], some)
                    for some in (
                        [one for one in terms if not term <= one],  # without the term
                        [one for one in terms if not term < one],  # with it
                        terms,
                    )
                ]
                without, with_it, full = (basis.shape[1] for basis in models)
                df, df_residual = with_it - without, len(sample) - full
                if df < 1 or df_residual < 1:
                    continue
                f, eta_squared, p = _analysis_of_variance(sample, models)
                tables.append(
                    keys.loc[columns].assign(
                        treatment=treatment,
                        baseline=baseline,
                        term=" x ".join(["treatment", *sorted(term)]),
                        n=len(sample),
                        f=f / df * df_residual,
                        df=df,
                        df_residual=df_residual,
                        eta_squared=eta_squared,
                        p=p,
                    )
                )
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True).dropna(subset="f", ignore_index=True)
    table["p_holm"] = np.nan
    for _, family in table.groupby(["term", "split"]):
        table.loc[family.index, "p_holm"] = holm(family["p"].to_numpy())
    return table


def _basis(levels: pd.DataFrame, terms: Sequence[frozenset[str]]) -> Numbers:
    """An orthonormal basis of what a model with these terms can say, rows x dimensions."""
    cells = [pd.get_dummies(levels.groupby(sorted(term)).ngroup()) for term in terms]
    parts = [np.ones((len(levels), 1)), *(cell.to_numpy(float) for cell in cells)]
    return np.asarray(linalg.orth(np.hstack(parts)), dtype=np.float64)


def _analysis_of_variance(
    sample: Numbers, models: Sequence[Numbers]
) -> tuple[Numbers, Numbers, Numbers]:
    """Ratio of the explained sum of squares to the residual one, partial eta squared, and p.

    Permutations are drawn as flips are in `sign_flip`.

    Args:
        sample: Rows x comparisons.
        models: Orthonormal bases: without the term, with it, and of the full model.
    """
    starts = np.cumsum([0, *(basis.shape[1] for basis in models[:-1])])
    bases = np.hstack(models)
    without = models[0].shape[1]
    fixed = bases.T @ models[0] @ (models[0].T @ sample)  # of the fit without the term
    residuals = sample - models[0] @ (models[0].T @ sample)
    squares = (sample**2).sum(axis=0)

    def ratio(order: Indices, chosen: Indices, residuals: Numbers) -> Numbers:
        """Explained over residual, of the fit with the residuals in another order.

        The bases, which have fewer columns, are put in the opposite order instead.
        """
        moved = bases[order].T @ residuals
        total = squares[chosen] + 2 * (fixed[:without, chosen] * moved[:without]).sum(axis=0)
        captured = np.add.reduceat((fixed[:, chosen] + moved) ** 2, starts)
        explained, left = captured[1] - captured[0], total - captured[2]
        rounding = 1e-12 * total
        return np.where(explained > rounding, explained, 0) / np.where(left > rounding, left, 0)

    generator = np.random.default_rng(0)
    undecided = np.arange(sample.shape[1])
    as_extreme, permutations = np.zeros((2, len(undecided)))
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = ratio(np.arange(len(sample)), undecided, residuals)
        for _ in range(PERMUTATIONS):
            found = ratio(generator.permutation(len(sample)), undecided, residuals)
            as_extreme[undecided] += ~(found < observed[undecided] * (1 - 1e-9))
            permutations[undecided] += 1
            still = as_extreme[undecided] < ENOUGH
            if not still.all():
                undecided, residuals = undecided[still], residuals[:, still]
        eta_squared = np.where(np.isinf(observed), 1, observed / (1 + observed))
    return observed, eta_squared, (1 + as_extreme) / (1 + permutations)
