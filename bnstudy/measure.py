"""Measuring the checkpoints of a run that has been trained."""

from typing import Any

import torch

from bnstudy.build import build
from bnstudy.callbacks import RepresentationMetrics
from bnstudy.runs.record import Record
from bnstudy.terms import SPLITS


def measure_checkpoints(
    record: Record, config: dict[str, Any], wanted: dict[int, set[tuple[str, str]]]
) -> None:
    """Add to the record what is wanted of epochs whose weights were kept.

    Args:
        record: Of a run that has ended.
        config: Its resolved configuration.
        wanted: By epoch, (site, metric).
    """
    data, classifier = build(config, record)
    what = set().union(*wanted.values())
    metrics = RepresentationMetrics(
        {split: data.probe(split) for split in SPLITS},
        sorted({name for _, name in what}),
        sorted({site for site, _ in what}),
    )
    rows = []
    for epoch, path in record.checkpoints().items():
        if epoch in wanted:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            weights = checkpoint["state_dict"]
            # Measured in the precision that the run was trained in, as it would have been then.
            classifier.to(next(w.dtype for w in weights.values() if w.is_floating_point()))
            classifier.load_state_dict(weights)
            measured = metrics.measure(classifier, epoch, checkpoint["global_step"])
            rows += [row for row in measured if (row.site, row.metric) in wanted[epoch]]
    record.description["metrics"] |= metrics.directions()
    record.save()
    record.add_rows(rows)
