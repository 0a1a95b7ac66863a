"""Explanation of stored answers: replay, the deciding token, and the parts of the model behind an answer."""
