"""Analyses of finished runs from their saved weights: metrics, similarity and embeddings."""
