"""Plotly figures of the probes' results, a module a topic: the only importers of plotly here. They compute nothing.

Import the module you need (`from probes.figures import heads`), or call a result's own `.figure()`.
"""
