"""Checks of what a table is worth, one file each: the user chooses what each does if it fails."""
