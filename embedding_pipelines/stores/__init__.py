"""Stores: each file here keeps vectors and searches them. `base.py` is the contract."""
