"""Layout of the pages: frame, tables, figures and their theme."""
