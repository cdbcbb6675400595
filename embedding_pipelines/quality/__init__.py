"""Whether a candidate may be released: checks, and what they look at."""
