"""A run on disk: file names, description, long table, lease."""
