"""Text from a model, and the log-probabilities of given text."""
