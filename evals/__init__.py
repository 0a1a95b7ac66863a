"""Benchmarks: lm-eval's model interface over our model, offline data, a sandbox, statistics, results.

Imports only `workbench`; lm_eval is imported inside the functions that need it.
"""
