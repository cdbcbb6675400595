"""What a user writes: the pipeline file, read, checked, numbered and edited."""
