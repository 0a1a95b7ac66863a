"""The text and the tokenizer of the embedded checkpoint."""
