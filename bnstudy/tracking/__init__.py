"""Runs in Weights & Biases: what they log, how they get there and back, and their dashboard."""
