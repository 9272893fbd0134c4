"""Names under which loggers get the values of the long table."""

from bnstudy.metrics import METRICS
from bnstudy.runs.long_table import Row
from bnstudy.terms import PERFORMANCE


def logged_name(row: Row) -> str:
    """Return the name of a row in loggers.

    - Whole model: `<split>/loss`, `<split>/accuracy`, and `<split>/probe_loss` and
      `<split>/probe_accuracy` of the probe set.
    - Representations: `rep/<split>/<layer>/<metric>`, with `<layer>.<site>` for sites other than
      act.
    - Optimization callbacks: `opt/<layer>/<metric>`, with `<layer>` as above, and `opt/<metric>`
      for the whole model; for the test split `opt/test/...`.

    Args:
        row: Row of the long table.
    """
    if row.metric in METRICS:
        return f"rep/{row.split}/{row.label}/{row.metric}"
    if row.metric in PERFORMANCE and row.site is None:
        return f"{row.split}/{row.metric}"
    split = "test" if row.split == "test" else ""
    return "/".join(filter(None, ["opt", split, row.label if row.site else "", row.metric]))
