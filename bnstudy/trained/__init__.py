"""Finished runs read again: measured, compared and embedded from the weights they kept."""
