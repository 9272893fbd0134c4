"""What the numbers of the long table are called by the loggers."""

from bnstudy.metrics import METRICS
from bnstudy.runs.long_table import Row


def logged_name(row: Row) -> str:
    """A row's name for loggers.

    `<split>/loss` and `<split>/accuracy` of the whole model; `rep/<split>/<layer>/<metric>` of
    representations, with `<layer>.<site>` at other sites than act; `opt/<layer>/<metric>` and
    `opt/<metric>` of what the optimization callbacks measure, of the test split `opt/test/...`.
    """
    if row.metric in METRICS:
        return f"rep/{row.split}/{row.label}/{row.metric}"
    if row.metric in ("loss", "accuracy") and row.site is None:
        return f"{row.split}/{row.metric}"
    split = "test" if row.split == "test" else ""
    return "/".join(filter(None, ["opt", split, row.label if row.site else "", row.metric]))
