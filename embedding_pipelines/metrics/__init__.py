"""Evaluation: figures that say how good a space is, with labels and without."""
