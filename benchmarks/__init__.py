"""How fast, against whom: each script prints a table; `README.md` holds the committed figures."""
