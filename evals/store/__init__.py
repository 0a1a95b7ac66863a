"""The response store: every answer a model gave, so that no question is asked twice."""
