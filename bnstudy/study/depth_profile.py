"""Depth profiles: numbers that describe how representations change over the layers of a network.

They are computed from metrics of the layers' activations in the records. Numbers after the last
epoch describe a whole network; numbers before training describe one layer each. Both are compared
within pairs, as metrics are.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from bnstudy.runs.long_table import WHOLE_MODEL
from bnstudy.study.effects import compare_pairs, read_pairs
from bnstudy.study.inference import mean, spread
from bnstudy.study.inference.columns import FloatArray
from bnstudy.study.load.matrix import count_layers, load_columns
from bnstudy.study.load.study_runs import StudyRuns

SITE = "act"
MIN_LAYERS = 3  # for the numbers of a whole network
TUNNEL_SHARE = 0.95  # of the last layer's probe accuracy


def separation_slope(nc1: FloatArray) -> float:
    """Compute the slope of log separation fuzziness over the numbers of the layers: 0, 1, 2, ...

    The law of data separation (He and Su 2023, arXiv 2210.17020) states that the separation
    fuzziness D = tr(S_W S_B^+) falls by a constant factor from layer to layer, so that log D falls
    linearly. `nc1` is D / number of classes, which does not change the slope.
    """
    return _fit_line(nc1)[0]


def separation_r_squared(nc1: FloatArray) -> float:
    """Compute the share of the variance of log separation fuzziness that the line explains."""
    return _fit_line(nc1)[1]


def tunnel_start(linear_probe: FloatArray) -> float:
    """Find the relative depth of the first layer whose probe is nearly as accurate as the last's.

    Masarczyk et al. 2023 (arXiv 2305.19753) call the layers from there on the tunnel. Nearly means
    at least 95 % of the last layer's accuracy. The first layer has depth 0, the last one 1.
    """
    if len(linear_probe) < MIN_LAYERS or not np.isfinite(linear_probe).all():
        return np.nan
    first = int(np.argmax(linear_probe >= TUNNEL_SHARE * linear_probe[-1]))
    return first / (len(linear_probe) - 1)


def orthogonality_gap(soft_rank: FloatArray, num_samples: FloatArray | float) -> FloatArray:
    """Compute the deviation of the samples' inner products from those of orthogonal samples.

    | M / tr M - I / N | in the Frobenius norm, where M are the N x N inner products (Daneshmand,
    Joudaki and Bach 2021, arXiv 2106.03970). As soft_rank = (tr M)^2 / |M|^2, it is
    sqrt(1 / soft_rank - 1 / N).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        gap: FloatArray = np.sqrt(np.maximum(1 / soft_rank - 1 / num_samples, 0))
    return gap


# Each number of a whole network: the metric whose values by layer determine it, and its function.
NETWORK_NUMBERS: dict[str, tuple[str, Callable[[FloatArray], float]]] = {
    "separation_slope": ("nc1", separation_slope),
    "separation_r_squared": ("nc1", separation_r_squared),
    "tunnel_start": ("linear_probe", tunnel_start),
}


class ProfileNumbers(NamedTuple):
    """Numbers of the runs' depth profiles.

    Attributes:
        keys: Table of the columns, as returned by `load_columns`; the metric is the number's name.
        values: Runs x columns.
    """

    keys: pd.DataFrame
    values: FloatArray


def compute_profile_numbers(study: StudyRuns) -> ProfileNumbers:
    """Compute the depth profiles of all runs, as far as the metrics that they need were measured.

    After the last epoch: `separation_slope`, `separation_r_squared` and `tunnel_start` of each
    network. Before training: `initial_rank` (`soft_rank`) and `initial_orthogonality_gap` of each
    layer.

    Args:
        study: Study whose runs are comparable.
    """
    return _join([*_compute_network_numbers(study), *_compute_initial_numbers(study)])


def compute_profile_effects(study: StudyRuns, baseline: str | None = None) -> pd.DataFrame:
    """Compute paired differences in the numbers of `compute_profile_numbers`.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.

    Returns:
        Table as returned by `compute_effects`; empty if no metric that they need was measured.
    """
    keys, values = compute_profile_numbers(study)
    if keys.empty:
        return pd.DataFrame()
    return compare_pairs(study, keys, partial(read_pairs, study, values), baseline)


def compute_initial_layers(study: StudyRuns) -> pd.DataFrame:
    """Compute means over runs of rank and orthogonality gap of each layer before training.

    Args:
        study: Study whose runs are comparable.

    Returns:
        One row per treatment, split, metric and place, with place_index, n, mean and sd; empty
        if the rank was not measured before training.
    """
    keys, values = _join(list(_compute_initial_numbers(study)))
    if keys.empty:
        return pd.DataFrame()
    tables = []
    treatments = study.results["treatment"].to_numpy(dtype=str)
    for treatment in study.treatments:
        sample = values[treatments == treatment]
        table = keys[["split", "metric", "place", "place_index"]].assign(
            treatment=treatment,
            n=np.isfinite(sample).sum(axis=0),
            mean=mean(sample),
            sd=spread(sample),
        )
        tables.append(table[table["n"] > 0])
    return pd.concat(tables, ignore_index=True)


def _join(parts: Sequence[ProfileNumbers]) -> ProfileNumbers:
    if not parts:
        return ProfileNumbers(pd.DataFrame(), np.empty((0, 0)))
    keys = pd.concat([part.keys for part in parts], ignore_index=True)
    return ProfileNumbers(keys, np.concatenate([part.values for part in parts], axis=1))


def _compute_network_numbers(study: StudyRuns) -> Iterator[ProfileNumbers]:
    """Compute the numbers of each whole network after the last epoch."""
    keys, values = load_columns(study)
    counts = count_layers(study)
    if SITE not in counts:
        return
    activations = keys[(keys["site"] == SITE) & (keys["layers"] > 0)]
    for name, (metric, function) in NETWORK_NUMBERS.items():
        measured = activations[activations["metric"] == metric]  # in the order of the layers
        for split, columns in measured.groupby("split", sort=False):
            numbers = np.full((len(values), 1), np.nan)
            for num_layers, layers in columns.groupby("layers"):
                for run in np.flatnonzero(counts[SITE] == num_layers):
                    numbers[run] = function(values[run, layers.index])
            key = {"split": split, "metric": name, "site": "", "layers": 0}
            place = {"place": WHOLE_MODEL, "place_index": 0}
            yield ProfileNumbers(pd.DataFrame([key | place]), numbers)


def _compute_initial_numbers(study: StudyRuns) -> Iterator[ProfileNumbers]:
    """Compute the numbers of each layer before training."""
    keys, values = load_columns(study, every="epoch")
    rank_keys = keys[
        (keys["epoch"] == 0)
        & (keys["metric"] == "soft_rank")
        & (keys["site"] == SITE)
        & (keys["place_index"] > 0)
    ]
    if rank_keys.empty:
        return
    ranks = values[:, rank_keys.index]
    num_samples = np.array(
        [
            [_read_probe_size(probe, split) for split in rank_keys["split"]]
            for probe in study.results["probe"]
        ]
    )
    keys = rank_keys.drop(columns="epoch").reset_index(drop=True)
    yield ProfileNumbers(keys.assign(metric="initial_rank"), ranks)
    gaps = orthogonality_gap(ranks, num_samples)
    yield ProfileNumbers(keys.assign(metric="initial_orthogonality_gap"), gaps)


def _read_probe_size(probe: str, split: str) -> float:
    """Read the number of samples of a split from a description such as "2000 train + 1000 test"."""
    sizes = dict(part.split()[::-1] for part in probe.split(" + ") if part)
    return float(sizes.get(split, np.nan))


def _fit_line(nc1: FloatArray) -> tuple[float, float]:
    """Fit a line to log nc1 over the numbers of the layers; return its slope and R squared."""
    if len(nc1) < MIN_LAYERS or not (np.isfinite(nc1) & (nc1 > 0)).all():
        return np.nan, np.nan
    if np.ptp(nc1) == 0:
        return 0.0, np.nan
    fit = stats.linregress(np.arange(len(nc1)), np.log(nc1))
    return float(fit.slope), float(fit.rvalue**2)
