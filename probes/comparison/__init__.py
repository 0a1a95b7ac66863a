"""Comparison of two runs or two models on the same tokens."""
