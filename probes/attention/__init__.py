"""Where heads look, and of which type they are."""
