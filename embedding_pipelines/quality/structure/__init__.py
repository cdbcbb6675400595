"""Checks of the table itself, one file each: one that fails always blocks the release."""
