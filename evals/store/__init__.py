"""The response store: caches every answer of a model, so that no question is computed twice."""
