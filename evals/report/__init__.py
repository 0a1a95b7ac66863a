"""Reports of runs and comparisons: terminal tables, documents and figures."""
