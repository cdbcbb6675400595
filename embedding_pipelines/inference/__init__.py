"""The engine for models on this machine: texts in, vectors out. It knows no pipeline."""
