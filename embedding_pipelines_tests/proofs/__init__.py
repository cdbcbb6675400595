"""Proofs through the project's own path: on the texts that come with Python, and on public data sets
where this machine has them. What is published of a model is reached."""
