"""Built-in rules for composing training batches, one module each."""
