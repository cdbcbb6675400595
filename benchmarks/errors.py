"""What can go wrong with a benchmark itself; what goes wrong inside a system is a result."""


class BenchmarkError(Exception):
    """One sentence for whoever runs the benchmark: what is wrong and what to do."""
