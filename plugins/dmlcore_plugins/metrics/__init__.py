"""Built-in measures beside those of retrieval, one module each."""
