"""Two runs, or a run and published scores: what may be compared, and by how much they differ."""
