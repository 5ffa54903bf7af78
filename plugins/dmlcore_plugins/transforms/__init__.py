"""Built-in random changes of training batches, one module each."""
