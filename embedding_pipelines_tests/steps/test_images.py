"""Images from folder to chunks: what is decoded again, what stays the same, what is the same twice."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from embedding_pipelines import pool
from embedding_pipelines.run import Run
from embedding_pipelines.sources.images import Captions
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.documents import inputs_of, write_documents
from embedding_pipelines.steps.pending import pending
from embedding_pipelines_tests.chain import hashing, run_of, write_pipeline
from embedding_pipelines_tests.drawn import drawing, encoded, write

pytestmark = pytest.mark.usefixtures("decoded_here")

PIPELINE = """\
source: {kind: images, path: photos, max_rejected: 1.0%s}
model: {provider: clip}
partitions: 2
"""
CAPTIONED = PIPELINE % ", captions: {path: photos/captions.csv, text: words, metadata: [album]}"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that were sent to be decoded."""
    seen: list[bytes] = []
    submit = pool.Pool.submit

    def record(self: pool.Pool, function: Any, data: bytes) -> Any:
        seen.append(data)
        return submit(self, function, data)

    monkeypatch.setattr(pool.Pool, "submit", record)
    return seen


def rows(run: Run, step: str) -> dict[str, dict[str, Any]]:
    """The rows of documents or chunks by document."""
    shards = step_named(step).shards(run)
    return {
        row["document_id"]: row
        for name in run.spec.partition_names
        for batch in shards.read(name)
        for row in batch.to_pylist()
    }


def cut(run: Run) -> dict[str, dict[str, Any]]:
    """Documents and chunks brought up to date; the chunks."""
    write_documents(run)
    for _ in step_named("chunks").work(run, run.spec.partition_names):
        pass
    return rows(run, "chunks")


def test_each_image_is_a_chunk_with_its_digest_its_caption_and_its_columns(home: Path) -> None:
    write_pipeline(home, "p", CAPTIONED)
    write(home / "photos" / "a.png", encoded(drawing(1)))
    write(home / "photos" / "sub" / "b.gif", encoded(drawing(2), "JPEG"))
    table = "file,words,album\na.png,A red house,trip\nsub/b.gif,,home\nc.png,Nobody,x\n"
    write(home / "photos" / "captions.csv", table.encode())
    run = run_of(home, "p", hashing())
    notes: list[str] = []
    run.progress.note = notes.append  # type: ignore[method-assign]
    chunks = cut(run)
    assert {name: (row["text"], row["album"]) for name, row in chunks.items()} == {
        "a.png": ("A red house", "trip"),
        "sub/b.gif": ("", "home"),
    }
    first, second = chunks["a.png"], chunks["sub/b.gif"]
    assert (first["chunk_id"], first["start"], first["end"], first["tokens"]) == (
        "a.png#0",
        0,
        11,
        0,
    )
    columns = ("file", "format", "width", "height", "uri")
    assert [second[name] for name in columns] == ["b.gif", "jpeg", 64, 48, "photos/sub/b.gif"]
    assert len(first["image"]) == 32
    assert notes == ["photos/captions.csv: 1 name of no image, such as 'c.png'"]
    assert sum(entry.statistics["images"] for entry in _manifests(run)) == 2


def _manifests(run: Run) -> list[Any]:
    return [run.folder.chunks.required(name) for name in run.spec.partition_names]


def test_only_what_is_new_is_decoded_and_another_caption_is_no_other_image(
    home: Path, opened: list[bytes]
) -> None:
    write_pipeline(home, "p", CAPTIONED)
    for seed in (1, 2, 3):
        write(home / "photos" / f"{seed}.png", encoded(drawing(seed)))
    captions = home / "photos" / "captions.csv"
    write(captions, b"file,words,album\n1.png,one,x\n1.png,uno,y\n2.png,two,x\n")
    before = cut(run_of(home, "p", hashing()))
    assert len(opened) == 3
    assert before["1.png"]["text"] == "one\nuno"
    assert not write_documents(run_of(home, "p")).changed
    write(captions, b"file,words,album\n1.png,one,x\n1.png,uno,y\n2.png,deux,x\n")
    after = cut(run_of(home, "p", hashing()))
    assert len(opened) == 4
    assert after["2.png"]["text"] == "deux"
    assert {name: row["image"] for name, row in after.items()} == {
        name: row["image"] for name, row in before.items()
    }
    (home / "photos" / "3.png").unlink()
    assert cut(run_of(home, "p", hashing())).keys() == {"1.png", "2.png"}
    assert len(opened) == 4


def test_a_new_name_and_another_encoding_without_loss_have_the_same_digest(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE % "")
    photos = home / "photos"
    write(photos / "a.png", encoded(drawing(1)))
    digests = {row["image"] for row in cut(run_of(home, "p", hashing())).values()}
    shutil.move(photos / "a.png", photos / "b.png")
    chunks = cut(run_of(home, "p", hashing()))
    assert chunks.keys() == {"b.png"}
    digests |= {row["image"] for row in chunks.values()}
    for kind, options in (("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})):
        write(photos / "b.png", encoded(drawing(1), kind, **options))
        chunks = cut(run_of(home, "p", hashing()))
        assert chunks["b.png"]["format"] == kind.lower()
        digests |= {chunks["b.png"]["image"]}
    assert len(digests) == 1


def test_a_broken_image_is_one_rejected_row(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE % "")
    write(home / "photos" / "good.png", encoded(drawing(1)))
    write(home / "photos" / "cut.png", encoded(drawing(2))[:900])
    write(home / "photos" / "empty.jpg", b"")
    write(home / "photos" / "phone.heic", b"\0\0\0\x18ftypheic" + bytes(30))
    run = run_of(home, "p", hashing())
    assert cut(run).keys() == {"good.png"}
    rejected = pq.read_table(run.folder.rejected).to_pylist()
    reasons = {row["file"]: row["reason"] for row in rejected}
    assert reasons.keys() == {"photos/cut.png", "photos/empty.jpg", "photos/phone.heic"}
    assert "broken" in reasons["photos/cut.png"]
    assert "no image of a format that is read" in reasons["photos/phone.heic"]


def test_captions_that_have_not_changed_are_read_by_no_look(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those that were written anew as they were, once a run has seen that."""
    write_pipeline(home, "p", CAPTIONED)
    for seed in range(3):
        write(home / "photos" / f"{seed}.png", encoded(drawing(seed)))
    table = write(home / "photos" / "captions.csv", b"file,words,album\n0.png,A red house,x\n")
    run, reads = run_of(home, "p", hashing()), []
    read = Captions.read
    monkeypatch.setattr(Captions, "read", lambda *given: reads.append(1) or read(*given))
    cut(run)

    def look() -> tuple[int, str, tuple[str, ...]]:
        """How often a look reads the captions, and what it sees."""
        reads.clear()
        state = pending(run, inputs_of(run))
        return len(reads), state.step, state.changed

    assert look() == (0, "embeddings", ())
    assert write_documents(run).changed is False
    table.write_bytes(table.read_bytes())
    assert look() == (1, "documents", ())
    write_documents(run)
    assert look() == (0, "embeddings", ())
    table.write_bytes(b"file,words,album\n0.png,A blue house,x\n")
    assert look() == (1, "", ("photos/0.png",))
    write_documents(run)
    assert rows(run, "documents")["0.png"]["text"] == "A blue house"
    (home / "photos" / "2.png").unlink()
    assert look()[0] == 0  # a name that is gone has no caption
    assert pending(run, inputs_of(run)).deleted == ("photos/2.png",)
    write(home / "photos" / "4.png", encoded(drawing(4)))
    assert look()[0] == 1
