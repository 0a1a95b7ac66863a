"""Rotary position embedding: its formulas, its part in each head's scores, other scalings."""
