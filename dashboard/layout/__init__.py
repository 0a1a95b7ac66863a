"""What every page is made of: its frame, tables, figures and their theme."""
