"""Sources: each file here turns one file format into documents; `base.py` is the contract."""
