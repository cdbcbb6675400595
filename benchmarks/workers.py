"""How much faster two workers of a Ray cluster are than one, on this machine.

    python -m benchmarks.workers [--texts 800] [--milliseconds 10] [--model own hf]

One worker on one core, then two on two: the driver and what all workers share included, since they
run there, too. Rates are those of the clock between the first shard and the last that all workers
were busy with, start-up aside, so they need a machine that has nothing else to do. The model `own`
takes so many milliseconds of a processor for a text; with `hf` MiniLM embeds them, of the extra
`offline`. Two to three minutes.
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

PARTITIONS = 32
WORDS = 40  # of a text
OWN = """\
import time, zlib
import numpy as np

class Model:
    dimensions = 64

    def __init__(self, seconds):
        self.seconds = seconds

    def embed(self, texts, input_type):
        end = time.thread_time() + self.seconds * len(texts)
        while time.thread_time() < end:
            pass
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(64) for text in texts]
        return np.array(rows, np.float32)
"""
MODELS = {
    "own": "{{provider: custom, cls: 'own:Model', request_texts: 10, options: {{seconds: {}}}}}",
    "hf": "{{provider: hf, model: sentence-transformers/all-MiniLM-L6-v2}}",
}
PIPELINE = """\
source: {{kind: jsonl, path: 'data/*.jsonl', id: id, text: [text]}}
model: {model}
engine: {{kind: ray, workers: {workers}, min_workers: {workers}}}
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
    """Texts a second of the clock, and of the processors of all processes."""
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
    # From where each worker may have ended its first shard to where the first one has no other.
    marks = marks[workers - 1 : len(marks) - workers + 1]
    (began, used, _), (ended, used_at_end, _) = marks[0], marks[-1]
    count = sum(rows for *_, rows in marks[1:])
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
    parser.add_argument("--texts", type=int, default=800)
    parser.add_argument("--milliseconds", type=float, default=10.0)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    options = parser.parse_args()
    for name in options.model:
        model, rates = MODELS[name].format(options.milliseconds / 1000), []
        for workers in (1, 2):
            with tempfile.TemporaryDirectory(prefix="workers-") as folder, on_cores(workers):
                rates.append(rate(Path(folder), options.texts, model, workers))
        (clock, processor), (clock_of_two, processor_of_two) = rates
        print(
            f"{name}: {clock:.1f} texts/s with one worker, {clock_of_two:.1f} with two: "
            f"{clock_of_two / clock:.2f} times as many; of a text's processor time "
            f"{processor / processor_of_two:.2f} times as much; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
