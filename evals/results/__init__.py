"""Finished runs on disk: written, found, read as tables, exported."""
