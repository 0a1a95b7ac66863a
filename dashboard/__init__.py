"""Streamlit pages and components: read the widgets, call one function, draw. Nothing below imports this package."""
