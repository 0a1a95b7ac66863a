"""Rotary position embedding: formulas, effect on each head's scores, and other scalings."""
