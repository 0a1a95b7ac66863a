"""Shared code of the probes: results, access to captures and weights, drawing, command-line options and output."""
