"""What was edited is counted by sentences, whatever chunks they stand in."""

import pyarrow as pa
import pytest

from embedding_pipelines import schemas
from embedding_pipelines.preprocessing.base import Counts, Preprocessing
from embedding_pipelines.preprocessing.chunk import Chunk
from embedding_pipelines.preprocessing.edits import Edits
from embedding_pipelines_tests.preprocessing.tokenizers_for_tests import count, wordpiece

SENTENCES = [f"The quick fox jumped over dog {number} and sentence." for number in range(40)]
EACH = count(wordpiece(), SENTENCES[20]) - 2


def edited(before: dict[str, str], after: dict[str, str]) -> int:
    """Tokens, of documents that are cut into chunks of 64."""
    preprocessing = Preprocessing(chunk=Chunk(max_tokens=64, overlap=16))
    cutter, edits = preprocessing.cutter(wordpiece(), 512), Edits(special_tokens=2)
    for texts, add in ((before, edits.add_before), (after, edits.add_after)):
        rows = [
            {"document_id": name, "text": text, schemas.DOCUMENT_DIGEST: bytes(16)}
            for name, text in texts.items()
        ]
        schema = schemas.stored_documents_schema({})
        batch = pa.RecordBatch.from_pylist(rows, schema)
        for chunks in preprocessing.process([batch], cutter, Counts()):
            add(chunks)
    return edits.tokens


def joined(sentences: list[str]) -> str:
    return " ".join(sentences)


def test_only_what_is_new_or_gone_is_edited() -> None:
    whole = joined(SENTENCES)
    assert edited({"a": whole, "b": "A fox."}, {"a": whole}) == 0
    one = [*SENTENCES[:7], "The lazy dog jumped over one brown fox.", *SENTENCES[7:]]
    new = count(wordpiece(), one[7]) - 2
    assert edited({"a": whole}, {"a": joined(one)}) == pytest.approx(new, abs=2)
    assert edited({"a": joined(one)}, {"a": whole}) == pytest.approx(new, abs=2)
    replaced = [*SENTENCES[:20], one[7], *SENTENCES[21:]]
    assert edited({"a": whole}, {"a": joined(replaced)}) == pytest.approx(EACH, abs=2)


def test_a_new_document_is_new_as_a_whole() -> None:
    whole = joined(SENTENCES)
    every = count(wordpiece(), whole) - 2
    assert edited({}, {"a": whole}) == pytest.approx(every, rel=0.02)
    assert edited({"b": whole}, {"a": whole}) == pytest.approx(every, rel=0.02)
