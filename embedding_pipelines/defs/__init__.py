"""Where `dg scaffold defs` writes components; `definitions.py` loads them beside the pipeline
files."""
