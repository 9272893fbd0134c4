"""Analysis of a study: reads the records of its runs from disk; never imports torch."""
