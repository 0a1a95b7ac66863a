"""Probes: measurements of a capture or a model, as arrays and tidy DataFrames.

One folder per topic: `attention`, `flow`, `rope`, `norms`, `logits`, `mlp`, `patching`, `generation`, `comparison`.
Each has its measurements, their figures (`figures.py`) and their commands (`commands.py`); `base` is the code that
they share. Import the module you need (`from probes.attention import head_metrics`). This package imports nothing, so
that the command line can list the probes without loading pandas and plotly. Every probe is a pure function that
returns a frozen result with `.frame()` and `.figure()`; figures compute nothing.
"""
