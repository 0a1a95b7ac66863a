"""Numbers that pages show and that belong to no single page: runs, samples, effects, facts of a model."""
