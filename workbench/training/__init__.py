"""The training loop, its recipe, and the text that the embedded checkpoint was trained on."""
