"""Providers: each file here is one way to turn text into vectors. `base.py` is the contract."""
