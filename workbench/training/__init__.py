"""The training loop, its recipe, and the training text of the embedded checkpoint."""
