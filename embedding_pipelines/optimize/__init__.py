"""Which compression keeps a recall floor at the least cost."""
