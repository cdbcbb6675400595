"""Documents of up to 18,975 words: every chunk fits the model, stands where it says, and nothing
falls between two."""

import json
from pathlib import Path

import pytest

from embedding_pipelines.steps.chunks import ChunksStep
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines_tests.chain import run_of, write_pipeline
from embedding_pipelines_tests.corpora import OWN, long_texts, own_and

pytestmark = [pytest.mark.slow]

PIPELINE = """\
source: {kind: jsonl, path: data/long.jsonl, id: id, text: text}
model: hf:sentence-transformers/all-MiniLM-L6-v2
"""
LEAST_WORDS = {OWN: 7_000, "peps/peps.jsonl": 15_851}  # of the longest


@pytest.mark.parametrize("name", own_and("peps/peps.jsonl"))
def test_every_chunk_fits_and_no_text_is_lost(home: Path, name: str) -> None:
    texts = long_texts(name)
    lines = [json.dumps({"id": str(row), "text": text}) for row, text in enumerate(texts)]
    (home / "data").mkdir()
    (home / "data" / "long.jsonl").write_text("\n".join([*lines, ""]))
    write_pipeline(home, "long", PIPELINE)
    context = run_of(home, "long")
    tokenizer, limit = context.model.tokenizer, context.model.limits.max_tokens
    assert limit == 256
    assert write_documents(context).statistics["documents"] == len(texts)

    documents: dict[str, str] = {}
    for partition in context.spec.partition_names:
        for batch in context.folder.documents.read(partition, ["document_id", "text"]):
            documents.update(
                zip(batch["document_id"].to_pylist(), batch["text"].to_pylist(), strict=True)
            )
    assert max(len(text.split()) for text in documents.values()) >= LEAST_WORDS[name]
    names = list(documents)
    cleaned = dict(
        zip(names, context.spec.preprocessing.clean.texts(list(documents.values())), strict=True)
    )

    covered = dict.fromkeys(documents, 0)  # how far a document's chunks have come
    for partition in context.spec.partition_names:
        list(ChunksStep().work(context, [partition]))
        for batch in context.folder.chunks.read(partition):
            rows = batch.to_pylist()
            counts = [
                len(entry.ids)
                for entry in tokenizer.encode_batch_fast([row["text"] for row in rows])
            ]
            assert max(counts) <= limit
            assert counts == [row["tokens"] for row in rows]
            for row in rows:
                text, end = cleaned[row["document_id"]], covered[row["document_id"]]
                assert row["text"] == text[row["start"] : row["end"]]
                assert not text[
                    end : row["start"]
                ].strip()  # at most white space between two chunks
                assert row["end"] > end
                covered[row["document_id"]] = row["end"]
    assert all(not cleaned[name][end:].strip() for name, end in covered.items())
