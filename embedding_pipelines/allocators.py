"""Memory that this process has freed and its allocators keep: Arrow's pool and the C library."""

import contextlib
import ctypes

import pyarrow as pa


def return_memory() -> None:
    """Give the system what has been freed: the allocators keep hundreds of MB of it for later, which
    would stand beside what comes next. Of the C library's, on Linux with glibc alone. Takes 1 to 17
    ms."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
