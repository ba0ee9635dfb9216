"""Vectors in, batches out: embeddings of items, one row each, from Parquet and .npy files."""
