"""Measuring the checkpoints of a run that has been trained."""

from typing import Any

import torch

from bnstudy.build import build
from bnstudy.callbacks import RepresentationMetrics
from bnstudy.data.images import SPLITS
from bnstudy.runs.record import Record


def measure_checkpoints(
    record: Record, config: dict[str, Any], wanted: set[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Add what is wanted to the record, for each epoch whose weights were kept.

    Args:
        record: Of a run that has ended.
        config: Its resolved configuration.
        wanted: (site, metric).

    Returns:
        The epochs that were measured, and those that have no checkpoint.
    """
    data, classifier = build(config, record)
    metrics = RepresentationMetrics(
        {split: data.probe(split) for split in SPLITS},
        sorted({name for _, name in wanted}),
        sorted({site for site, _ in wanted}),
    )
    rows = []
    checkpoints = record.checkpoints()
    for epoch, path in checkpoints.items():
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        classifier.load_state_dict(checkpoint["state_dict"])
        measured = metrics.measure(classifier, epoch, checkpoint["global_step"])
        rows += [row for row in measured if (row.site, row.metric) in wanted]
    record.add_rows(rows)
    record.description["metrics"] |= metrics.directions()
    record.save()
    return sorted(checkpoints), sorted(record.measured_epochs() - checkpoints.keys())
