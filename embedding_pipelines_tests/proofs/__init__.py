"""Proofs on real data: published figures and real corpora, each through the project's own path."""
