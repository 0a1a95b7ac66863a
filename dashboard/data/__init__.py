"""Data shared by several pages: benchmark runs, samples, intervention effects, and model facts."""
