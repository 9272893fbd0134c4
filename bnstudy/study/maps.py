"""Where samples lie in a plane, of the runs of a study that kept it."""

import pandas as pd

from bnstudy.runs.record import MAPS, MAPS_SCHEMA, damage
from bnstudy.study.load import Study

# A layer is named as in the long table. One that was not measured is a place of its own.
NAMED = """
    select *, case when site = 'act' then layer else layer || '.' || site end as named
    from read_parquet($files, filename = true)
"""


def maps(study: Study) -> pd.DataFrame:
    """The maps that `python -m bnstudy.measure map` made of a study's runs.

    Args:
        study: Its runs that have ended are looked at.

    Returns:
        One row a sample of a map: cell, treatment, seed, epoch, split, place, place_index (as in
        `Study.query`), site, method (pca, umap), sample, label, class, x, y, share (of the variance
        that the plane holds; NaN of umap). Seeds come one after the other. Of several layers at one
        place the last one is there.
    """
    kept = study.results[["cell", "treatment", "seed"]].assign(
        file=[str(study.folder / cell / MAPS) for cell in study.results["cell"]]
    )
    whole = {
        str(path) for path in study.folder.glob(f"*/{MAPS}") if damage(path, MAPS_SCHEMA) is None
    }
    kept = kept[kept["file"].isin(whole)]
    if kept.empty:
        return pd.DataFrame(columns=["treatment", "method"])
    study.connection.register("kept", kept)
    return study.query(
        f"""
        select kept.cell, treatment, seed, epoch, split, coalesce(place, named) as place,
               coalesce(place_index, 1) as place_index, site, method, sample, label, class, x, y,
               share
        from ({NAMED}) maps
        join kept on kept.file = maps.filename
        left join places on places.cell = kept.cell and places.layer = maps.named
        qualify row_number() over (
            partition by kept.cell, method, coalesce(place, named), sample
            order by relative_depth desc
        ) = 1
        order by seed, kept.cell, method, site, place_index, place, sample
        """,
        files=kept["file"].tolist(),
    )
