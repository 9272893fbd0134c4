"""File of a run's two-dimensional embeddings, one for each layer."""

from pathlib import Path

import pyarrow as pa

from bnstudy.runs.parquet_file import read_table

EMBEDDINGS_SCHEMA = pa.schema(
    [
        ("epoch", pa.int32()),
        ("split", pa.string()),
        ("layer_index", pa.int32()),  # index among the layers that were embedded
        ("layer", pa.string()),
        ("site", pa.string()),
        ("method", pa.string()),  # pca or umap
        ("sample", pa.int32()),  # index in the probe set
        ("label", pa.int64()),
        ("class", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("share", pa.float32()),  # explained share of the variance, from 0 to 1; null for umap
        ("reason", pa.string()),  # why x and y are null; null if they are not
    ]
)


def read_embedding_file(path: Path) -> pa.Table:
    """Read the embeddings of a run.

    Args:
        path: File of the embeddings.

    Returns:
        Table of `EMBEDDINGS_SCHEMA`, with the file's metadata.

    Raises:
        FileNotFoundError: The file does not exist.
        DamagedFile: The file is damaged, or has other columns.
    """
    advice = "Remove it, and make it again with python -m bnstudy.measure map"
    return read_table(path, EMBEDDINGS_SCHEMA, advice=advice)
