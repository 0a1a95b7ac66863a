"""Logit lens, tuned lens and direct logit attribution."""
