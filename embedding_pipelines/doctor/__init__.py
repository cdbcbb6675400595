"""Looking at what is stored, and mending it."""
