"""The science: a capture or a model in, arrays and tidy DataFrames out.

Import the module you need (`from probes import attention, rope, norms, lens`); nothing is loaded here, so
that the command line can name the probes without paying for pandas or plotly. Every probe is a pure function
that returns a frozen result with `.frame()`; `probes.figures` draws them and is the only importer of plotly.
"""
