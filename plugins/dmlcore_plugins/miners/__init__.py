"""Built-in miners, one module each."""
