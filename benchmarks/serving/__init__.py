"""The server under load: a room of its own, whose command is `python -m benchmarks.serving`."""
