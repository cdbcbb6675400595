"""Compression: each file here is one way to make vectors smaller. `base.py` is the contract."""
