"""Finds the cheapest compression that keeps a floor of recall."""
