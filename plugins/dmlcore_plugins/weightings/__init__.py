"""Built-in weightings of an ensemble's terms, one module each."""
