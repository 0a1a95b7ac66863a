"""What the server and each session hold: models, captures, computed results, and the values in the URL."""
