"""What changes when activations are removed or replaced: ablation and patching."""
