"""The models that lm-eval asks: ours and its own, behind one response cache."""
