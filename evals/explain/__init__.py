"""From a wrong answer to the parts of the model behind it."""
