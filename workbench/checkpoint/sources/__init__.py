"""Where checkpoints come from: names resolved to folders, the Hugging Face hub, the real model of the package index."""
