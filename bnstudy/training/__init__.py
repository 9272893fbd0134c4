"""Training of one cell: data, network, trainer, loggers and checkpoints."""
