"""LanceDB's modules are loaded without the package around them, once in a process."""

import subprocess
import sys

THREADS = """
import threading
from embedding_pipelines.stores._lance import part
barrier, loaded = threading.Barrier(8), []
def load():
    barrier.wait()
    loaded.append((part("_lancedb"), part("background_loop").LOOP))
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(loaded) == 8 and len(set(map(id, dict(loaded).values()))) == 1, loaded
"""


def test_threads_that_need_it_at_once_load_it_once() -> None:
    subprocess.run([sys.executable, "-c", THREADS], check=True, timeout=60)
