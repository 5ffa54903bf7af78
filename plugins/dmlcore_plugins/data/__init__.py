"""Built-in data sources, one module each."""
