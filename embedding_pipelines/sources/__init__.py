"""Sources: each file here turns one kind of input file into documents. `base.py` is the
contract."""
