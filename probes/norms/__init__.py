"""RMS norms and the residual stream, on a prompt and during generation."""
