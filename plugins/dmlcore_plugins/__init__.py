"""The built-in plugins: one module per loss, weighting, and so on, registered through the same hooks as anybody's."""
