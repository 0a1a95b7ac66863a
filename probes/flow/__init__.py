"""Information flow: attention rollout, value-weighted attention, and information flow routes."""
