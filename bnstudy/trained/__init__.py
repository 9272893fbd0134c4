"""Analyses of finished runs from their saved weights, and measurement of published networks."""
