"""The same tokens in two runs or two models."""
