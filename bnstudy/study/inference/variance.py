"""Permutation analysis of variance of differences within pairs."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from bnstudy.study.inference.columns import FloatArray, IntArray, group_rows, patterns

MAX_PERMUTATIONS = 999
MAX_EXTREME = 100  # permutations as extreme as the observed order, after which no more are drawn
MAX_COLUMNS = 2_000  # comparisons at once, so that memory is bounded
MAX_ORDER = 2  # maximum number of factors in a term

Term = frozenset[int]  # numbers of the factors in it


class TermTest(NamedTuple):
    """Test of a main effect or an interaction, in comparisons that have the same pairs.

    Attributes:
        term: Number of the factor, or numbers of the factors that interact.
        columns: Numbers of the comparisons.
        n: Number of pairs.
        f: F ratio of each comparison.
        df: Degrees of freedom of the term.
        df_residual: Degrees of freedom of the residuals.
        eta_squared: Partial eta squared of each comparison.
        p: p of each comparison, at least 1 / (1 + max_permutations).
    """

    term: Term
    columns: IntArray
    n: int
    f: FloatArray
    df: int
    df_residual: int
    eta_squared: FloatArray
    p: FloatArray


def analysis_of_variance(
    differences: FloatArray,
    factors: NDArray[Any],
    *,
    max_order: int = MAX_ORDER,
    max_permutations: int = MAX_PERMUTATIONS,
    max_extreme: int = MAX_EXTREME,
) -> Iterator[TermTest]:
    """Test whether differences depend on factors, by permutations.

    Factors are categories. Sums of squares are of type II. p comes from permuting the residuals of
    the model without the term (Freedman and Lane 1983, doi:10.1080/07350015.1983.10509354), so that
    no normal distribution is assumed. Permutations are drawn until `max_extreme` of them were as
    extreme as the observed order (Besag and Clifford 1991, doi:10.1093/biomet/78.2.301). They are
    the same in each call.

    Args:
        differences: Pairs x comparisons; NaN marks a pair without a value.
        factors: Pairs x factors, as values of any type that can be sorted.
        max_order: Maximum number of factors in a term: 1 for main effects, 2 for main effects and
            interactions of two factors.
        max_permutations: Maximum number of permutations.
        max_extreme: Number of permutations as extreme as the observed order that ends the test.

    Yields:
        Test of each term, for each group of comparisons that have the same pairs; none without
        degrees of freedom of the term or of the residuals.

    Examples:
        >>> depth = np.array([[2], [2], [2], [2], [4], [4], [4], [4]])
        >>> changes = np.array([[0.1], [0.2], [0.1], [0.2], [0.5], [0.6], [0.5], [0.6]])
        >>> (found,) = analysis_of_variance(changes, depth)
        >>> found.f.round(6), found.df, found.df_residual, found.p[0] < 0.05
        (array([96.]), 1, 6, np.True_)
    """
    orders = range(1, max_order + 1)
    terms = [frozenset(term) for n in orders for term in combinations(range(factors.shape[1]), n)]
    for columns, sample, rows in _split_into_blocks(differences):
        for term in terms:
            models = [
                _compute_basis(factors[rows], model_terms)
                for model_terms in (
                    [other for other in terms if not term <= other],  # without the term
                    [other for other in terms if not term < other],  # with it
                    terms,
                )
            ]
            df_without, df_with, df_full = (basis.shape[1] for basis in models)
            df, df_residual = df_with - df_without, len(sample) - df_full
            if df < 1 or df_residual < 1:
                continue
            ratio, eta_squared, p = _permute(sample, models, max_permutations, max_extreme)
            f = ratio / df * df_residual
            yield TermTest(term, columns, len(sample), f, df, df_residual, eta_squared, p)


def _split_into_blocks(
    differences: FloatArray,
) -> Iterator[tuple[IntArray, FloatArray, IntArray]]:
    """Yield blocks of comparisons with the same pairs: columns, differences, rows of the pairs."""
    for rows, columns in patterns(np.isfinite(differences)):
        for start in range(0, len(columns), MAX_COLUMNS):
            block = columns[start : start + MAX_COLUMNS]
            yield block, differences[np.ix_(rows, block)], rows


def _compute_basis(factors: NDArray[Any], terms: Sequence[Term]) -> FloatArray:
    """Compute an orthonormal basis of a model with given terms, rows x dimensions."""
    cells = [group_rows(factors[:, sorted(term)].T) for term in terms]
    indicators = [np.ones((len(factors), 1)), *(np.eye(cell.max() + 1)[cell] for cell in cells)]
    return np.asarray(linalg.orth(np.hstack(indicators)), dtype=np.float64)


def _permute(
    sample: FloatArray, models: Sequence[FloatArray], max_permutations: int, max_extreme: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the ratio of explained to residual sum of squares, partial eta squared, and p.

    Args:
        sample: Rows x comparisons.
        models: Orthonormal bases: without the term, with it, and of the full model.
        max_permutations: Maximum number of permutations.
        max_extreme: Number of permutations as extreme as the observed order that ends the test.
    """
    starts = np.cumsum([0, *(basis.shape[1] for basis in models[:-1])])
    bases = np.hstack(models)
    rank = models[0].shape[1]  # of the model without the term
    fitted = bases.T @ models[0] @ (models[0].T @ sample)  # by the model without the term
    residuals = sample - models[0] @ (models[0].T @ sample)
    squares = (sample**2).sum(axis=0)

    def compute_ratio(order: IntArray, columns: IntArray, residuals: FloatArray) -> FloatArray:
        """Compute explained over residual sum of squares with the residuals in another order.

        The bases are reordered instead of the residuals, because they have fewer columns.
        """
        moved = bases[order].T @ residuals
        total = squares[columns] + 2 * (fitted[:rank, columns] * moved[:rank]).sum(axis=0)
        captured = np.add.reduceat((fitted[:, columns] + moved) ** 2, starts)
        explained, unexplained = captured[1] - captured[0], total - captured[2]
        rounding = 1e-12 * total
        explained = np.where(explained > rounding, explained, 0)
        return explained / np.where(unexplained > rounding, unexplained, 0)

    generator = np.random.default_rng(0)
    undecided = np.arange(sample.shape[1])
    as_extreme, permutations = np.zeros((2, len(undecided)))
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = compute_ratio(np.arange(len(sample)), undecided, residuals)
        for _ in range(max_permutations):
            permuted = compute_ratio(generator.permutation(len(sample)), undecided, residuals)
            as_extreme[undecided] += ~(permuted < observed[undecided] * (1 - 1e-9))
            permutations[undecided] += 1
            is_undecided = as_extreme[undecided] < max_extreme
            if not is_undecided.all():
                undecided, residuals = undecided[is_undecided], residuals[:, is_undecided]
        eta_squared = np.where(np.isinf(observed), 1, observed / (1 + observed))
    return observed, eta_squared, (1 + as_extreme) / (1 + permutations)
