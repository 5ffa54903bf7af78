"""Built-in losses, one module each."""
