"""Finished runs on disk: writing, finding, reading as tables, exporting."""
