"""Speed measurements: each script prints a table; the committed ones are in the Markdown file of the same topic."""
