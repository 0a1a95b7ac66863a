"""The processes of an evaluation: how they share the work, and how they report their progress."""
