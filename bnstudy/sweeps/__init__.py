"""Sweeps: planning, launching and monitoring of many runs."""
