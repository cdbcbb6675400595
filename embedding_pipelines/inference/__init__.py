"""The local engine: token ids in, vectors out. It knows no pipeline."""
