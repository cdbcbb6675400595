"""Arrays in, numbers out: what a space is worth, with labels and without."""
