"""What attention moves, and from where it reaches a position."""
