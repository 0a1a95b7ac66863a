"""Running evaluations: one from settings to results, or many as a sweep."""
