"""Tables of a study, each computed once; `bnstudy.study.present` shows them."""

from functools import cached_property
from itertools import combinations

import pandas as pd

from bnstudy.study.confounders import describe_confounders
from bnstudy.study.depth_profile import compute_initial_layers, compute_profile_effects
from bnstudy.study.effects import (
    compute_averages,
    compute_effects,
    compute_effects_over_time,
    compute_factors,
)
from bnstudy.study.equal_training import CRITERIA, compute_equal_training
from bnstudy.study.generalization import compute_interventions, compute_mediation, compute_relations
from bnstudy.study.load.design import COLUMN_OF_KEY
from bnstudy.study.load.embedding_tables import read_embeddings
from bnstudy.study.load.matrix import load_columns
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.uncertainty import compute_two_source_intervals

# Maximum number of axes. Besides the effects over all pairs, effects are computed at each value
# and combination of values of the axes.
MAX_AXES = 3


class Analysis:
    """Tables of a study; each is computed on first access.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: chosen by `StudyRuns.baseline`.

    Attributes:
        study: Study whose runs are comparable.
        baseline: Treatment that the others are compared with.
        axes: Columns of `study.runs`; effects are also computed at each of their values.

    Raises:
        UserError: No run has ended, or there is no such treatment.
    """

    def __init__(self, study: StudyRuns, baseline: str | None = None) -> None:
        _ = study.connection  # raises an error if no run has ended
        self.study = study
        self.baseline = study.baseline(baseline)
        self.axes = choose_axes(study)

    @cached_property
    def confounders(self) -> list[str]:
        """One text for each treatment whose pairs differ in more than norm and regularizer."""
        texts = (
            describe_confounders(self.study, treatment, self.baseline)
            for treatment in self.study.treatments_without(self.baseline)
        )
        return [text for text in texts if text]

    @cached_property
    def averages(self) -> pd.DataFrame:
        """Averages over all runs after the last epoch; see `compute_averages`."""
        return compute_averages(self.study)

    @cached_property
    def averages_at_points(self) -> pd.DataFrame:
        """Averages over the runs at each point of the grid that `axes` form."""
        return compute_averages(self.study, by=self.axes)

    @cached_property
    def averages_by_epoch(self) -> pd.DataFrame:
        """Averages over all runs at each epoch."""
        return compute_averages(self.study, every="epoch")

    @cached_property
    def overall_effects(self) -> pd.DataFrame:
        """Effects over all pairs; see `compute_effects`."""
        return compute_effects(self.study, self.baseline)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Effects over all pairs, and at each value and combination of values of the axes.

        The column of an axis is empty where an effect is over all values of that axis.
        """
        subsets = [
            axes for size in range(1, len(self.axes) + 1) for axes in combinations(self.axes, size)
        ]
        at_points = [compute_effects(self.study, self.baseline, by=axes) for axes in subsets]
        return pd.concat(
            [self.overall_effects.assign(**dict.fromkeys(self.axes)), *at_points], ignore_index=True
        )

    @cached_property
    def mixed_depths(self) -> list[int]:
        """Depths of the networks, if depth is an axis and their numbers of layers differ."""
        keys = load_columns(self.study)[0]
        # `layers` is 0 if values are interpolated at relative depths.
        has_relative_depths = ((keys["layers"] == 0) & (keys["place_index"] > 0)).any()
        if not has_relative_depths or "depth" not in self.axes:
            return []
        return sorted(map(int, self.study.results["depth"].unique()))

    @cached_property
    def depths_by_metric(self) -> dict[str, list[int]]:
        """Depths of `mixed_depths` at which a metric of layers was measured on the training split.

        The keys are all metrics of layers; without mixed depths, the lists are empty.
        """
        averages = self._averages_of_depths if self.mixed_depths else self.averages
        in_layers = averages[(averages["place_index"] > 0) & (averages["split"] == "train")]
        return {
            str(metric): [depth for depth in self.mixed_depths if (rows["depth"] == depth).any()]
            for metric, rows in in_layers.groupby("metric")
        }

    @cached_property
    def _averages_of_depths(self) -> pd.DataFrame:
        return compute_averages(self.study, by=["depth"])

    def select_depth(self, depth: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Select averages and effects of networks of one depth, over all values of the other axes.

        Args:
            depth: One of `mixed_depths`.
        """
        averages, effects = self._averages_of_depths, self.effects
        other_axes = [axis for axis in self.axes if axis != "depth"]
        is_selected = (effects["depth"] == depth) & effects[other_axes].isna().all(axis=1)
        return averages[averages["depth"] == depth], effects[is_selected]

    @cached_property
    def effects_by_epoch(self) -> pd.DataFrame:
        """Effects at each epoch; see `compute_effects_over_time`."""
        return compute_effects_over_time(self.study, self.baseline)

    @cached_property
    def averages_by_step(self) -> pd.DataFrame:
        """Averages over all runs at each measured step; empty if none is within an epoch."""
        return compute_averages(self.study, every="step") if self._has_steps else pd.DataFrame()

    @cached_property
    def effects_by_step(self) -> pd.DataFrame:
        """Effects at each measured step; empty if none is within an epoch."""
        if not self._has_steps:
            return pd.DataFrame()
        return compute_effects_over_time(self.study, self.baseline, every="step")

    @cached_property
    def _has_steps(self) -> bool:
        # `steps` contains all values of `rows`, and those that were measured within epochs.
        difference = "select (select count(*) from steps) - count(*) from rows"
        return bool(self.study.query(difference).iloc[0, 0])

    @cached_property
    def equal_training(self) -> dict[str, pd.DataFrame]:
        """Effects at equal training loss and accuracy; see `compute_equal_training`."""
        return {name: compute_equal_training(self.study, name, self.baseline) for name in CRITERIA}

    @cached_property
    def profile_effects(self) -> pd.DataFrame:
        """Effects on the values that summarize depth profiles; see `compute_profile_effects`."""
        return compute_profile_effects(self.study, self.baseline)

    @cached_property
    def initial_layers(self) -> pd.DataFrame:
        """Means of rank and orthogonality gap before training; see `compute_initial_layers`."""
        return compute_initial_layers(self.study)

    @cached_property
    def two_source_intervals(self) -> pd.DataFrame:
        """Effects with intervals over pairs and samples; see `compute_two_source_intervals`."""
        return compute_two_source_intervals(self.study, self.baseline)

    @cached_property
    def factors(self) -> pd.DataFrame:
        """Tests of depth and width as factors of the effects; see `compute_factors`."""
        return compute_factors(self.study, self.baseline)

    @cached_property
    def relations(self) -> pd.DataFrame:
        """Rank correlations of metrics with generalization; see `compute_relations`."""
        return compute_relations(self.study)

    @cached_property
    def mediation(self) -> pd.DataFrame:
        """Mediated effects on generalization; see `compute_mediation`."""
        return compute_mediation(self.study, self.baseline)

    @cached_property
    def interventions(self) -> pd.DataFrame:
        """Effects of regularizers; see `compute_interventions`."""
        return compute_interventions(self.study)

    @cached_property
    def embeddings(self) -> pd.DataFrame:
        """Embeddings of samples; see `read_embeddings`."""
        return read_embeddings(self.study)


def choose_axes(study: StudyRuns) -> tuple[str, ...]:
    """Choose up to three axes of the grid that vary; depth, width and learning rate come first.

    Args:
        study: Study whose runs are comparable.
    """
    columns = [COLUMN_OF_KEY.get(key, key) for key in study.design.grid]
    preferred = [name for name in COLUMN_OF_KEY.values() if name in columns]
    varying = [
        name
        for name in dict.fromkeys([*preferred, *columns])
        if study.results[name].nunique() > 1 and study.results[name].notna().all()
    ]
    return tuple(varying[:MAX_AXES])
