"""Text generation, and log-probabilities of given continuations."""
