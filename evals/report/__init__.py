"""Runs and comparisons as text, documents and figures."""
