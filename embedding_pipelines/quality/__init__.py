"""Checks that stand between a new table version and its release, and what they look at."""
