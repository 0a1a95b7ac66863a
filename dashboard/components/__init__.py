"""Components with a browser half: Python beside the css and js that it mounts."""
