"""Built-in trunks, one module each."""
