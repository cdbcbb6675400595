"""One HTML page per pipeline: metrics over releases, and a map."""
