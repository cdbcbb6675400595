"""The phases are what they say: how many documents change, which ones, and what that does to the
files."""

import json
from pathlib import Path

import pytest

from benchmarks.corpus import Document, Phase, phases, read_corpus, read_texts, write_phase
from benchmarks.errors import BenchmarkError

SCIFACT = 5_183


def documents(count: int) -> list[Document]:
    return [
        Document(
            str(number), f"Title {number}", " ".join(f"word{number}x{place}" for place in range(30))
        )
        for number in range(count)
    ]


def by_name(count: int) -> dict[str, Phase]:
    return {phase.name: phase for phase in phases(documents(count))}


def test_scifact_changes_by_52_26_and_26() -> None:
    found = by_name(SCIFACT)
    cold, changed, copied = found["cold"].texts, found["change"].texts, found["copy"].texts
    assert list(found) == ["cold", "no-op", "change", "copy"]
    assert len(cold) == SCIFACT
    assert found["no-op"].texts == cold
    assert len(cold.keys() - changed.keys()) == 26
    assert len(changed.keys() - cold.keys()) == 26
    assert {name for name in cold.keys() & changed.keys() if cold[name] != changed[name]} == found[
        "change"
    ].edited
    assert len(found["change"].edited) == 52
    assert len(copied.keys() - changed.keys()) == 120
    assert [phase.to_embed for phase in found.values()] == [SCIFACT, 0, 78, 0]


def test_what_is_to_be_embedded_was_never_there_and_copies_all_were() -> None:
    found = by_name(1_000)
    cold, changed, copied = found["cold"].texts, found["change"].texts, found["copy"].texts
    new = set(changed.values()) - set(cold.values())
    assert len(new) == found["change"].to_embed
    assert {copied[name] for name in copied.keys() - changed.keys()} <= set(changed.values())
    assert all(name.removeprefix("copy-") in changed for name in copied.keys() - changed.keys())


def test_an_edit_shows_from_the_beginning_on() -> None:
    found = by_name(300)
    for name in found["change"].edited:
        assert found["cold"].texts[name][:8] != found["change"].texts[name][:8]


def test_the_same_corpus_gives_the_same_phases() -> None:
    assert phases(documents(200)) == phases(documents(200))
    assert phases(documents(200), seed=1) != phases(documents(200))


def test_files_that_are_right_are_not_touched(tmp_path: Path) -> None:
    found = by_name(100)
    write_phase(found["cold"], tmp_path)
    path = tmp_path / "corpus" / "corpus.jsonl"
    stamp = path.stat()
    write_phase(found["no-op"], tmp_path)
    assert path.stat() == stamp
    write_phase(found["change"], tmp_path)
    assert read_texts(tmp_path) == found["change"].texts
    stamp = path.stat()
    write_phase(found["copy"], tmp_path)
    assert path.stat() == stamp
    assert read_texts(tmp_path) == found["copy"].texts


def test_a_corpus_is_read_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    records = [
        {"_id": str(number), "title": f"Über {number}", "text": "some words"}
        for number in range(30)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert len(read_corpus(path)) == 30
    assert [document.text for document in read_corpus(path, 20)][:1] == ["Über 0\nsome words"]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (['{"_id": "1", "title": "a", "text": "b"}'], "too few"),
        (['{"_id": "1", "title": "a", "text": "b"}'] * 20, "twice"),
        (['{"name": "1"}'], "not a corpus"),
        (["no JSON"], "not a corpus"),
    ],
)
def test_what_is_no_corpus_is_refused(lines: list[str], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(BenchmarkError, match=problem):
        read_corpus(path)


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="absent"):
        read_corpus(tmp_path / "absent.jsonl")
