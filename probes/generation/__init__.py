"""Sampling trace: the distribution from which each generated token was drawn."""
