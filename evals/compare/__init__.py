"""Comparison of two runs, or of a run with published scores: which questions match, and how much the scores differ."""
