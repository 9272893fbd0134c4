"""Verdict, figures, tables and page of a study."""
