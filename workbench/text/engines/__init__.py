"""The libraries behind `Tokenizer`, each with the same few methods."""
