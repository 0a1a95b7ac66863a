"""The science: a capture or a model in, arrays and tidy DataFrames out.

A folder a topic: `attention`, `flow`, `rope`, `norms`, `logits`, `mlp`, `patching`, `generation`, `comparison`, each
with its measurements, their figures (`figures.py`) and their commands (`commands.py`); `base` is what they share.
Import the module you need (`from probes.attention import head_metrics`): nothing is loaded here, so that the command
line can name the probes without the time that pandas and plotly take. Every probe is a pure function that returns a
frozen result with `.frame()` and `.figure()`; figures compute nothing.
"""
