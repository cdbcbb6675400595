"""How much faster two workers of a Ray cluster are than one, on this machine.

    python -m benchmarks.workers [--texts 1600] [--milliseconds 10] [--model hf]

One worker on one core, then two on two: the driver and what all workers share included, since they
run there, too. Rates are those between the first shard and the last, start-up aside. Without --model
a text takes so many milliseconds of a processor, whatever else the machine does; a third and fourth
run sleep in place of it, which shows what waiting for one another costs on a machine that is busy.
With --model the texts are embedded by MiniLM, of the extra `offline`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from embedding_pipelines.extras import need
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.storage.warehouse import Warehouse

PARTITIONS = 16
WORDS = 40  # of a text
OWN = """\
import time, zlib
import numpy as np

class Model:
    dimensions = 64

    def __init__(self, seconds, sleeps):
        self.seconds, self.sleeps = seconds, sleeps

    def embed(self, texts, input_type):
        if self.sleeps:
            time.sleep(self.seconds * len(texts))
        else:
            end = time.thread_time() + self.seconds * len(texts)
            while time.thread_time() < end:
                pass
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(64) for text in texts]
        return np.array(rows, np.float32)
"""
PIPELINE = """\
source: {{kind: jsonl, path: 'data/*.jsonl', id: id, text: [text]}}
model: {model}
engine: {{kind: ray, workers: {workers}}}
partitions: {partitions}
"""


def write_home(home: Path, texts: int, model: str, workers: int) -> Run:
    for folder in ("data", "pipelines"):
        (home / folder).mkdir(parents=True)
    (home / "own.py").write_text(OWN)
    lines = (
        f'{{"id": "d{n}", "text": "{" ".join(f"word{n * word % 997}" for word in range(WORDS))}"}}\n'
        for n in range(texts)
    )
    (home / "data" / "texts.jsonl").write_text("".join(lines))
    text = PIPELINE.format(model=model, workers=workers, partitions=PARTITIONS)
    (home / "pipelines" / "p.yaml").write_text(text)
    return Run(find_pipeline("p", home), Warehouse(home))


def rate(home: Path, texts: int, model: str, workers: int) -> tuple[float, float]:
    """Texts a second of the clock, and of the processors of all processes, from the first shard on."""
    run = write_home(home, texts, model, workers)
    list(step_named("documents").work(run, run.spec.partition_names))
    ray = need("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        list(step_named("chunks").work(run, run.spec.partition_names))
        marks = list[tuple[float, float, int]]()
        for report in step_named("embeddings").work(run, run.spec.partition_names):
            marks.append((time.perf_counter(), _processor_seconds(), report.statistics["vectors"]))
    finally:
        ray.shutdown()
    # The first shard of each worker: all have started by then.
    (began, used, _), (ended, used_at_end, _) = marks[workers - 1], marks[-1]
    count = sum(rows for *_, rows in marks[workers:])
    return count / (ended - began), count / (used_at_end - used)


def _processor_seconds() -> float:
    """Of this process and all that it has started."""
    total, processes = 0.0, [psutil.Process(), *psutil.Process().children(recursive=True)]
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """This process, and what it starts, on so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_600)
    parser.add_argument("--milliseconds", type=float, default=10.0)
    parser.add_argument("--model", choices=["hf"])
    options = parser.parse_args()
    own = "{{provider: custom, cls: 'own:Model', request_texts: 10, options: {{seconds: {}, sleeps: {}}}}}"
    models = {
        sleeps: own.format(options.milliseconds / 1000, sleeps) for sleeps in ("false", "true")
    }
    if options.model:
        models = {"MiniLM": "{provider: hf, model: sentence-transformers/all-MiniLM-L6-v2}"}
    for name, model in models.items():
        rates = dict[int, tuple[float, float]]()
        for workers in (1, 2):
            with tempfile.TemporaryDirectory(prefix="workers-") as folder, on_cores(workers):
                rates[workers] = rate(Path(folder), options.texts, model, workers)
        (clock, processor), (clock_of_two, processor_of_two) = rates[1], rates[2]
        title = {"false": "computing", "true": "sleeping"}.get(name, name)
        print(
            f"{title}: {clock:.1f} texts/s with one worker, {clock_of_two:.1f} with two: "
            f"{clock_of_two / clock:.2f} times as many; of a text's processor time "
            f"{processor / processor_of_two:.2f} times as much; load {os.getloadavg()[0]:.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
