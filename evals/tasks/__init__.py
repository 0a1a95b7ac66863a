"""Benchmarks: the task registry, their data, presets and grading of answers."""
