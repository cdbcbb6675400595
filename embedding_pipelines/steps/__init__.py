"""The steps of the chain, one file each; `chain.py` puts them in order, `base.py` says what a step
is."""
