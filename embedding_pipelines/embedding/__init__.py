"""Embedding: how texts reach a provider in good batches, and how no text is paid for twice."""
