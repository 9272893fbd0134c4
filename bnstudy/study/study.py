"""Study as a library object, and `load`, which reads it from disk."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from bnstudy.errors import UserError
from bnstudy.runs.parts import FINISHED
from bnstudy.study.analysis import Analysis
from bnstudy.study.effects import compute_effects
from bnstudy.study.load.records import UNREADABLE
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.figures import Plot
from bnstudy.terminal import console


class Study(StudyRuns):
    """Runs of a study, with their values, paired differences and figures.

    For `runs` and `query`, see `StudyRuns`.
    """

    def metrics(
        self, *names: str, split: str | None = None, every_epoch: bool = False
    ) -> pd.DataFrame:
        """Select the values of the runs that have ended.

        Args:
            names: Names of metrics, `accuracy` or `loss`; without names: all.
            split: Split that the values were measured on; None: all splits.
            every_epoch: Select all epochs instead of each run's last epoch.

        Returns:
            One row per value: cell, treatment, seed, depth, width, epoch, split, site, layer_index
            (-1 for the whole model), layer, metric, value, reason (why a value is NaN).

        Raises:
            UserError: No run has ended, or none has such a metric or split.
        """
        known = self.query("select distinct metric, split from last order by all")
        for label, requested, known_names in (
            ("metric", names, known["metric"]),
            ("split", [split] if split else [], known["split"]),
        ):
            if unknown := set(requested) - set(known_names):
                raise UserError(
                    f"{label}={sorted(unknown)[0]} is not in {self.folder}; "
                    f"it has {', '.join(known_names.unique())}"
                )
        return self.query(
            """
            select cell, treatment, seed, depth, width, epoch, split, site, layer_index, layer,
                   metric, value, reason
            from rows join runs using (cell)
            where (is_last or $every_epoch) and (metric in $names or $all_metrics)
                  and (split = $split or $split is null)
            order by cell, epoch, split desc, layer_index, site, metric
            """,
            every_epoch=every_epoch,
            names=list(names),
            all_metrics=not names,
            split=split,
        )

    def effects(self, baseline: str | None = None, *, by: Sequence[str] = ()) -> pd.DataFrame:
        """Compute paired differences to a baseline with their uncertainty.

        Args:
            baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.
            by: Columns of `runs`, such as depth; the pairs are compared separately at each
                combination of their values.

        Returns:
            Table as returned by `bnstudy.study.effects.compute_effects`.
        """
        return compute_effects(self, baseline, by=by)

    @cached_property
    def plot(self) -> Plot:
        """Figures, such as the Matplotlib figure `study.plot.layers("silhouette")`."""
        return Plot(Analysis(self))


def load(folder: Path | str) -> Study:
    """Read a study, and print which runs are left out because of damaged files.

    Args:
        folder: Folder of the study, such as multirun/mnist5k_cnn.

    Raises:
        UserError: It contains no run whose record can be read.
    """
    study = Study.read(folder)
    runs = study.runs
    is_damaged = ~runs["ended"] & runs["status"].isin([*FINISHED, UNREADABLE])
    for cell, remark in runs.loc[is_damaged, ["cell", "remark"]].itertuples(index=False):
        console.print(f"{cell} is left out: {remark}", style="yellow")
    return study
