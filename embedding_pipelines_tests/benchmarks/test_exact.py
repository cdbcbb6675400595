"""A store that is not exactly right is found out, and it is said how."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.exact import RightVectors, Verdict, refuse_invisible, verdict

BEFORE = {"a": "one", "b": "two", "c": "three"}
TEXTS = {"a": "one", "b": "two, edited", "d": "four"}
RIGHT = dict(
    zip(sorted({*BEFORE.values(), *TEXTS.values()}), np.eye(5, dtype=np.float32), strict=True)
)


def judged(rows: list[tuple[str, str]]) -> Verdict:
    """The verdict on rows of an id and the text whose vector it has."""
    vectors = np.array([RIGHT[text] for _, text in rows], np.float32).reshape(len(rows), 5)
    return verdict([name for name, _ in rows], vectors, TEXTS, BEFORE, RIGHT)


def test_the_right_ids_with_the_right_vectors_are_exact() -> None:
    found = judged([("d", "four"), ("a", "one"), ("b", "two, edited")])
    assert found.exact
    assert str(found) == "exact"
    assert found.lowest_cosine == 1.0


@pytest.mark.parametrize(
    ("rows", "fault", "ids"),
    [
        ([("a", "one"), ("b", "two, edited")], "missing", ["d"]),
        ([("a", "one"), ("b", "two, edited"), ("d", "four"), ("c", "three")], "extra", ["c"]),
        ([("a", "one"), ("b", "two, edited"), ("d", "four"), ("a", "one")], "twice", ["a"]),
        ([("a", "one"), ("b", "two"), ("d", "four")], "stale", ["b"]),
        ([("a", "one"), ("b", "two, edited"), ("d", "three")], "wrong", ["d"]),
    ],
)
def test_each_fault_is_named(rows: list[tuple[str, str]], fault: str, ids: list[str]) -> None:
    found = judged(rows)
    assert not found.exact
    assert getattr(found, fault) == ids
    assert [
        name for name in ("missing", "extra", "twice", "stale", "wrong") if getattr(found, name)
    ] == [fault]
    assert str(found) == f"1 {fault} ({ids[0]})"


def test_an_empty_store_misses_everything() -> None:
    assert judged([]).missing == ["a", "b", "d"]


def test_rounding_and_length_are_no_faults() -> None:
    noisy = {text: 3 * (row + 0.01 * RIGHT["one"]) for text, row in RIGHT.items()}
    rows = sorted(TEXTS)
    vectors = np.stack([noisy[TEXTS[name]] for name in rows])
    assert verdict(rows, vectors, TEXTS, BEFORE, RIGHT).exact
    assert verdict(rows, np.zeros((3, 5), np.float32), TEXTS, BEFORE, RIGHT).wrong == rows


def test_an_edit_that_does_not_show_is_refused() -> None:
    refuse_invisible({"b"}, TEXTS, BEFORE, RIGHT)
    with pytest.raises(BenchmarkError, match="'a'"):
        refuse_invisible({"a"}, TEXTS, BEFORE, RIGHT)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a stand-in for the encoder was asked for; a token of it is a word, its limit
    is 8."""
    texts: list[str] = []

    def encode(batch: list[str], **options: Any) -> Any:
        texts.extend(batch)
        return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in batch]]

    def tokenizer(text: str, **options: Any) -> dict[str, list[str]]:
        return {"input_ids": text.split()}

    encoder = SimpleNamespace(encode=encode, tokenizer=tokenizer, max_seq_length=8)
    monkeypatch.setattr(RightVectors, "_encoder", encoder)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return texts


def test_the_right_vectors_are_made_once(asked: list[str], tmp_path: Path) -> None:
    first = RightVectors(tmp_path, tmp_path / "cache").of({"one", "three"})
    again = RightVectors(tmp_path, tmp_path / "cache").of({"one", "three", "four"})
    assert asked == ["one", "three", "four"]
    assert again["one"].tolist() == first["one"].tolist() == [0, 0, 0, 1]
    (tmp_path / "model.safetensors").write_bytes(b"others")
    RightVectors(tmp_path, tmp_path / "cache").of({"one"})
    assert asked == ["one", "three", "four", "one"]


def test_a_text_may_be_cut_near_the_limit_only(asked: list[str], tmp_path: Path) -> None:
    right = RightVectors(tmp_path, tmp_path)
    whole = "a b c d e f g h i j k"
    assert right.cut(whole, "a b c d e f g") == "a b c d e f g"
    assert right.cut(whole, "a b c") == whole
    assert right.cut(whole, "b c d e f g h") == whole
    assert right.cut(whole, whole) == whole
