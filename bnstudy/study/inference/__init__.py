"""Inference from paired differences and from ranks: functions of arrays.

`differences` is always pairs x comparisons; NaN marks a pair without a value, which is left out of
that comparison alone.
"""

from bnstudy.study.inference.columns import mean, patterns, spread
from bnstudy.study.inference.effect_sizes import cohens_d, rank_biserial
from bnstudy.study.inference.mediation import Mediation, mediate
from bnstudy.study.inference.multiple_tests import holm, max_t_adjusted
from bnstudy.study.inference.paired import PairedTest, paired_test, sign_flips, student_t
from bnstudy.study.inference.planning import pairs_needed, probability_of_improvement
from bnstudy.study.inference.ranks import (
    GranulatedKendall,
    Kendall,
    MutualInformation,
    conditional_mutual_information,
    granulated_kendall,
    kendall,
)
from bnstudy.study.inference.resolution import estimate_noise, measured_differences
from bnstudy.study.inference.variance import TermTest, analysis_of_variance

__all__ = [
    "GranulatedKendall",
    "Kendall",
    "Mediation",
    "MutualInformation",
    "PairedTest",
    "TermTest",
    "analysis_of_variance",
    "cohens_d",
    "conditional_mutual_information",
    "estimate_noise",
    "granulated_kendall",
    "holm",
    "kendall",
    "max_t_adjusted",
    "mean",
    "measured_differences",
    "mediate",
    "paired_test",
    "pairs_needed",
    "patterns",
    "probability_of_improvement",
    "rank_biserial",
    "sign_flips",
    "spread",
    "student_t",
]
