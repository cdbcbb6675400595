"""Engines: where the shards of a step are worked on, one file per choice."""
