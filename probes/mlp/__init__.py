"""MLP neurons."""
