"""Records of a study, read from disk."""
