"""All that is computed of a study, once: the page, figures, tables and terminal show it."""

from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from bnstudy.study.generalization import interventions, mediation, relations
from bnstudy.study.load import NAMES, Study
from bnstudy.study.statistics import averages, curves, effects, factors
from bnstudy.study.verdict import verdict

MOST_AXES = 3  # by whose values effects are looked at, alone and in combination

# What the figures, and the terminal, begin with: of each, the first that was measured.
SPARSITY = ("channel_sparsity", "unit_sparsity", "hoyer")
CLUSTERING = ("kmeans_nmi", "silhouette", "kmeans_purity", "knn_purity", "within_between_ratio")


@dataclass(frozen=True)
class Findings:
    """What a study's runs say.

    Attributes:
        study: Whose runs are comparable.
        baseline: The treatment that the others are compared with.
        axes: Columns of `study.runs` at whose values effects are looked at as well.
        averages: Of `bnstudy.study.statistics.averages`, over all runs, after the last epoch.
        points: The same at each point of the axes.
        epochs: The same over all runs at each epoch.
        effects: Of `bnstudy.study.statistics.effects`, of all pairs (the axes' columns are empty),
            and at each value and combination of values of the axes.
        curves: Of `bnstudy.study.statistics.curves`.
        factors: Of `bnstudy.study.statistics.factors`.
        relations: Of `bnstudy.study.generalization.relations`.
        mediation: Of `bnstudy.study.generalization.mediation`.
        interventions: Of `bnstudy.study.generalization.interventions`.
        verdict: Sentences.
    """

    study: Study
    baseline: str
    axes: tuple[str, ...]
    averages: pd.DataFrame
    points: pd.DataFrame
    epochs: pd.DataFrame
    effects: pd.DataFrame
    curves: pd.DataFrame
    factors: pd.DataFrame
    relations: pd.DataFrame
    mediation: pd.DataFrame
    interventions: pd.DataFrame
    verdict: list[str]

    @classmethod
    def of(cls, study: Study, baseline: str | None = None) -> "Findings":
        """Compute them.

        Args:
            study: Whose runs are comparable.
            baseline: A treatment; None: `Study.baseline`'s choice.

        Raises:
            UserError: No run has ended, or there is no such treatment.
        """
        baseline = study.baseline(baseline)
        axes = axes_of(study)
        whole = effects(study, baseline)
        relation, mediated = relations(study), mediation(study, baseline)
        intervened = interventions(study)
        subsets = [some for size in range(1, len(axes) + 1) for some in combinations(axes, size)]
        at_points = [effects(study, baseline, by=some) for some in subsets]
        return cls(
            study=study,
            baseline=baseline,
            axes=axes,
            averages=averages(study),
            points=averages(study, by=axes),
            epochs=averages(study, every_epoch=True),
            effects=pd.concat([whole.assign(**dict.fromkeys(axes)), *at_points], ignore_index=True),
            curves=curves(study, baseline),
            factors=factors(study, baseline),
            relations=relation,
            mediation=mediated,
            interventions=intervened,
            verdict=verdict(study, whole, relation, mediated, intervened),
        )

    @property
    def whole(self) -> pd.DataFrame:
        """The effects of all pairs together."""
        if self.effects.empty:
            return self.effects
        return self.effects[self.effects[list(self.axes)].isna().all(axis=1)]

    def first_of(self, metrics: tuple[str, ...]) -> str | None:
        """The first of some metrics that was measured in layers."""
        measured = set(self.epochs.loc[self.epochs["place_index"] > 0, "metric"])
        return next((metric for metric in metrics if metric in measured), None)


def axes_of(study: Study) -> tuple[str, ...]:
    """Depth, width, the learning rate, then others: the first three of the grid's axes that vary.

    Args:
        study: Whose runs are comparable.
    """
    columns = [NAMES.get(key, key) for key in study.design.grid]
    first = [name for name in NAMES.values() if name in columns]
    varying = [
        name
        for name in dict.fromkeys([*first, *columns])
        if study.results[name].nunique() > 1 and study.results[name].notna().all()
    ]
    return tuple(varying[:MOST_AXES])
