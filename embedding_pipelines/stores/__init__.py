"""Stores: each file here keeps vectors in tables and searches them; `base.py` is the contract."""
