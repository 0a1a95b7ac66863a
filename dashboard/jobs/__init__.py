"""Benchmark jobs started from a page, each in a process that outlives the server."""
