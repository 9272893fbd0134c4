"""All that is computed of a study, once: the page, figures, tables and terminal show it."""

from functools import cached_property
from itertools import combinations

import pandas as pd

from bnstudy.study.effects import averages, curves, effects, factors
from bnstudy.study.fairness import all_other_differences
from bnstudy.study.generalization import interventions, mediation, relations
from bnstudy.study.load.design import NAMES
from bnstudy.study.load.embedding_tables import maps
from bnstudy.study.load.matrix import all_columns
from bnstudy.study.load.study_runs import StudyRuns

MOST_AXES = 3  # by whose values effects are looked at, alone and in combination


class Analysis:
    """What a study's runs say; each table is computed when it is first asked for.

    Args:
        study: Whose runs are comparable.
        baseline: A treatment; None: `StudyRuns.baseline`'s choice.

    Attributes:
        study: As given.
        baseline: The treatment that the others are compared with.
        axes: Columns of `study.runs` at whose values effects are looked at as well.

    Raises:
        UserError: No run has ended, or there is no such treatment.
    """

    def __init__(self, study: StudyRuns, baseline: str | None = None) -> None:
        _ = study.connection  # tells where no run has ended
        self.study = study
        self.baseline = study.baseline(baseline)
        self.axes = axes_of(study)

    @cached_property
    def other_differences(self) -> list[str]:
        """What runs of a pair differ in besides the norm, of each comparison that has such."""
        return all_other_differences(self.study, self.baseline)

    @cached_property
    def averages(self) -> pd.DataFrame:
        """Of `bnstudy.study.effects.averages`, over all runs, after the last epoch."""
        return averages(self.study)

    @cached_property
    def points(self) -> pd.DataFrame:
        """The same at each point of the axes."""
        return averages(self.study, by=self.axes)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """The same over all runs at each epoch."""
        return averages(self.study, every_epoch=True)

    @cached_property
    def whole(self) -> pd.DataFrame:
        """Of `bnstudy.study.effects.effects`, of all pairs together."""
        return effects(self.study, self.baseline)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Those of all pairs (the axes' columns are empty), and at all values of the axes.

        At each value of one, and at each combination of values of several.
        """
        subsets = [
            some for size in range(1, len(self.axes) + 1) for some in combinations(self.axes, size)
        ]
        at_points = [effects(self.study, self.baseline, by=some) for some in subsets]
        return pd.concat(
            [self.whole.assign(**dict.fromkeys(self.axes)), *at_points], ignore_index=True
        )

    @cached_property
    def depths(self) -> list[int]:
        """Depths of networks that differ in their numbers of layers; empty where none do."""
        keys = all_columns(self.study)[0]
        is_mixed = ((keys["layers"] == 0) & (keys["place_index"] > 0)).any()
        if not is_mixed or "depth" not in self.axes:
            return []
        return sorted(map(int, self.study.results["depth"].unique()))

    @cached_property
    def _averages_of_depths(self) -> pd.DataFrame:
        return averages(self.study, by=["depth"])

    def of_depth(self, depth: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The averages and effects of networks of one depth, whatever else they differ in.

        Args:
            depth: One of `depths`.
        """
        means, effects = self._averages_of_depths, self.effects
        others = [axis for axis in self.axes if axis != "depth"]
        alone = effects[others].isna().all(axis=1)
        return means[means["depth"] == depth], effects[(effects["depth"] == depth) & alone]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Of `bnstudy.study.effects.curves`."""
        return curves(self.study, self.baseline)

    @cached_property
    def factors(self) -> pd.DataFrame:
        """Of `bnstudy.study.effects.factors`."""
        return factors(self.study, self.baseline)

    @cached_property
    def relations(self) -> pd.DataFrame:
        """Of `bnstudy.study.generalization.relations`."""
        return relations(self.study)

    @cached_property
    def mediation(self) -> pd.DataFrame:
        """Of `bnstudy.study.generalization.mediation`."""
        return mediation(self.study, self.baseline)

    @cached_property
    def interventions(self) -> pd.DataFrame:
        """Of `bnstudy.study.generalization.interventions`."""
        return interventions(self.study)

    @cached_property
    def maps(self) -> pd.DataFrame:
        """Of `bnstudy.study.load.embedding_tables.maps`."""
        return maps(self.study)


def axes_of(study: StudyRuns) -> tuple[str, ...]:
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
