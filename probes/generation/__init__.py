"""What each generated token was drawn from."""
