"""Data in and embeddings out: sources, the warehouse, example generation and batch embedding."""
