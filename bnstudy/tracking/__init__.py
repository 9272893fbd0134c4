"""Weights & Biases integration: logging, uploading and downloading runs, and the dashboard."""
