"""The processes of an evaluation: work sharing and progress reports."""
