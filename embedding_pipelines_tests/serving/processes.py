"""A server in a process of its own, on loopback."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from embedding_pipelines_tests.commands import EXECUTABLE


@contextlib.contextmanager
def serving(home: Path, *options: str, key: str = "") -> Iterator[str]:
    """Its address, as long as the body runs."""
    environment = {**os.environ, "EMBEDDING_PIPELINES_HOME": str(home), "EMBEDDING_API_KEY": key}
    with subprocess.Popen(
        [EXECUTABLE, "serve", "--port", "0", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("Ready on "), process.stderr.read()
        try:
            yield line.split()[2].rstrip(".")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
