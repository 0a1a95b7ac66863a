"""Causal interventions on activations: ablation, activation patching and path patching."""
