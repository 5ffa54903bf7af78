"""Built-in compressors of wide embeddings, one module each."""
