"""Storage of runs on disk: file names, description, long table and lease."""
