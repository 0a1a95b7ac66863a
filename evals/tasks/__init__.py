"""The benchmarks: which there are, where their questions come from, how answers are graded."""
