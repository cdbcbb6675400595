"""The engine on real texts: how little is padding, and memory that does not grow with the
corpus."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.measure import measure
from embedding_pipelines.embedding.packing import pack
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.examples import list_characters
from embedding_pipelines.inference.encoder import token_batches
from embedding_pipelines.inference.openvino import BATCH_TOKENS
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines.spec.pipeline import partition_of
from embedding_pipelines.storage.warehouse import ROW_GROUP_ROWS
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.corpora import (
    captions,
    docstrings,
    judged_corpus,
    long_texts,
    own_and,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

PARTITIONS = 16
MOST_PADDING = 0.03
CAPTIONS = """\
source: {kind: csv, path: data/captions.csv, id: id, text: [caption], metadata: [image]}
model: {provider: hashing, dimensions: 384}
"""
RUN = """
from embedding_pipelines.environment import home
from embedding_pipelines_tests.chain import run_of, steps
context, vectors = run_of(home(), "captions"), 0
for step, report in steps(context):
    vectors += report.statistics["vectors"] if step == "embeddings" else 0
    if step == "codec":
        break
print(vectors)
"""
MOST_GROWTH = 1.2


def texts_of(corpus: str) -> list[str]:
    match corpus:
        case "docstrings":
            return [f"{each['summary']}\n{each['details']}" for each in docstrings()]
        case "characters":
            return character_names()[:20_000]
        case "scifact":
            return [entry["text"] for entry in judged_corpus(corpus).entries]
        case "captions/captions_en.csv":
            return captions(20_000)
    parts = (part for text in long_texts(corpus) for part in text.split("\n\n"))
    return [part for part in parts if part.strip()][:20_000]


def character_names() -> list[str]:
    return [name.lower() for _, _, name, *_ in list_characters()]


PUBLIC = own_and("scifact", "captions/captions_en.csv", "peps/peps.jsonl")[1:]


@pytest.mark.parametrize("corpus", ["docstrings", "characters", *PUBLIC])
def test_less_than_three_in_a_hundred_tokens_are_padding(proof_home: Path, corpus: str) -> None:
    model = Hf(model="sentence-transformers/all-MiniLM-L6-v2").open(proof_home)
    limits, texts = model.limits, texts_of(corpus)
    partitions: dict[int, list[int]] = {}
    for number, entry in enumerate(model.tokenizer.encode_batch_fast(texts)):
        partitions.setdefault(partition_of(str(number), PARTITIONS), []).append(
            min(len(entry), limits.max_tokens)
        )
    real = padded = 0
    for lengths in partitions.values():
        for start in range(0, len(lengths), ROW_GROUP_ROWS):
            part = lengths[start : start + ROW_GROUP_ROWS]
            for request in pack(part, limits):
                for batch in token_batches([part[at] for at in request], BATCH_TOKENS):
                    widths = [part[request[at]] for at in batch]
                    real += sum(widths)
                    padded += len(widths) * max(widths)
    assert 1 - real / padded < MOST_PADDING


def caption(names: Sequence[str], row: int) -> str:
    """Two things beside one another; no two rows have the same."""
    other = names[(7 * row + row // len(names)) % len(names)]
    return f"a {names[row % len(names)]} beside a {other} on a street"


def test_memory_does_not_grow_with_the_corpus_once_batches_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the files to the codec. Training LanceDB's index takes more for more rows:
    benchmarks/NOTES.md."""
    names, peaks = character_names(), []
    for rows in (65_000, 155_000):  # 4,062 and 9,687 in each of 16 partitions; a batch has 4,096
        home = tmp_path / str(rows)
        (home / "data").mkdir(parents=True)
        lines = (f"{row},{caption(names, row)},{row}.jpg" for row in range(rows))
        text = "\n".join(["id,caption,image", *lines, ""])
        (home / "data" / "captions.csv").write_text(text, encoding="utf-8")
        write_pipeline(home, "captions", CAPTIONS)
        monkeypatch.setenv(HOME_VARIABLE, str(home))
        done = measure([sys.executable, "-c", RUN], os.environ, tmp_path / "run")
        assert done.code == 0, done.stderr
        assert int(done.stdout) == rows
        peaks.append(done.peak_bytes)
    assert peaks[1] <= MOST_GROWTH * peaks[0], peaks
