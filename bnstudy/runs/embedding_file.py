"""The file of a run's embeddings: where samples lie in a plane, layer by layer."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bnstudy.errors import UserError, first_line

MAPS_SCHEMA = pa.schema(
    [
        ("epoch", pa.int32()),
        ("split", pa.string()),
        ("layer_index", pa.int32()),  # among those that have maps
        ("layer", pa.string()),
        ("site", pa.string()),
        ("method", pa.string()),  # pca or umap
        ("sample", pa.int32()),  # its number in the probe set
        ("label", pa.int64()),
        ("class", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("share", pa.float32()),  # of the variance, that the plane holds; null of umap
        ("reason", pa.string()),  # why there is no x and y; null where there are
    ]
)


def read_maps(path: Path) -> pa.Table:
    """Read the embeddings of a run.

    Args:
        path: File of the embeddings.

    Returns:
        Table of `MAPS_SCHEMA`, with the file's metadata.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is damaged.
    """
    again = "Remove it, and make it again with python -m bnstudy.measure map"
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({first_line(error)})\n{again}") from error
    if not table.schema.equals(MAPS_SCHEMA):
        raise UserError(f"{path} has other columns than this version's\n{again}")
    return table
