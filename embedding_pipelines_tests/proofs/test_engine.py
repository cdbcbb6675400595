"""The engine on real texts: how little is padding, and memory that does not grow with the corpus."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_pipelines.embedding.batching import calls
from embedding_pipelines.home import HOME_VARIABLE
from embedding_pipelines.pipeline import bucket_of
from embedding_pipelines.providers._openvino import OpenVino
from embedding_pipelines.providers._sentence_transformer import token_batches
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines.warehouse import ROW_GROUP_ROWS
from embedding_pipelines_tests.chain import write_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

BUCKETS = 16
MOST_PADDING = 0.03
CAPTIONS = """\
source: {kind: csv, path: data/captions.csv, id: id, text: [caption], metadata: [image]}
model: {provider: hashing, dimensions: 384}
"""
RUN = """
import resource, sys
from embedding_pipelines.cli import main
sys.argv = ["embedding-pipelines", "run", "captions", "--json"]
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
MOST_GROWTH = 1.2  # for ten times the rows


def texts_of(shared: Path, corpus: str) -> list[str]:
    if corpus == "captions":
        with (shared / "captions" / "captions_en.csv").open(encoding="utf-8", newline="") as file:
            return [row["caption"] for row in itertools.islice(csv.DictReader(file), 20_000)]
    folder, name = ("scifact", "corpus.jsonl") if corpus == "abstracts" else ("peps", "peps.jsonl")
    with (shared / folder / name).open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    if corpus == "paragraphs":
        return [part for text in texts for part in text.split("\n\n") if part.strip()][:20_000]
    return texts


@pytest.mark.parametrize("corpus", ["abstracts", "captions", "paragraphs"])
def test_less_than_three_in_a_hundred_tokens_are_padding(shared: Path, proof_home: Path, corpus: str) -> None:
    provider = Hf(model="sentence-transformers/all-MiniLM-L6-v2")
    limits, texts = provider.limits, texts_of(shared, corpus)
    buckets: dict[int, list[int]] = {}
    for number, entry in enumerate(provider.tokenizer().encode_batch_fast(texts)):
        buckets.setdefault(bucket_of(str(number), BUCKETS), []).append(min(len(entry), limits.max_tokens))
    real = padded = 0
    for lengths in buckets.values():
        for start in range(0, len(lengths), ROW_GROUP_ROWS):
            window = lengths[start : start + ROW_GROUP_ROWS]
            for call in calls(window, limits):
                for batch in token_batches([window[at] for at in call], OpenVino.batch_tokens):
                    widths = [window[call[at]] for at in batch]
                    real += sum(widths)
                    padded += len(widths) * max(widths)
    assert 1 - real / padded < MOST_PADDING


def test_ten_times_the_rows_take_little_more_memory(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with (shared / "captions" / "captions_en.csv").open("rb") as file:
        lines = file.readlines()
    peaks = []
    for rows in (15_500, 155_000):
        home = tmp_path / str(rows)
        (home / "data").mkdir(parents=True)
        (home / "data" / "captions.csv").write_bytes(b"".join(lines[: rows + 1]))
        write_pipeline(home, "captions", CAPTIONS)
        monkeypatch.setenv(HOME_VARIABLE, str(home))
        done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
        (result,) = json.loads(done.stdout)
        (released,) = [step["rows"] for step in result["steps"] if step["step"] == "release"]
        assert released == rows
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] <= MOST_GROWTH * peaks[0]
