"""Built-in receivers of training records, one module each."""
