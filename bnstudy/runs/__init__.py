"""A run's identity, its record on disk, its environment."""
