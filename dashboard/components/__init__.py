"""Elements with a browser half: Python with its css and js."""
