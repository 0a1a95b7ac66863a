"""Custom Streamlit components, each with its Python, JavaScript and CSS."""
