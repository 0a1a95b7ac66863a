"""Training text and tokenizer of the embedded checkpoint."""
