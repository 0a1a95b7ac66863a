"""Attention patterns: metrics, maps and types of heads."""
