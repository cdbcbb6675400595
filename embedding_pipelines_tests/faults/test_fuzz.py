"""A few inputs of `fuzz`, and what it must find where a reader is wrong."""

from collections import Counter
from pathlib import Path

import pytest

from embedding_pipelines.steps.spill import Spill
from embedding_pipelines_tests.faults.fuzz import FAULTS, KINDS, Case, case_of, fuzz, try_case


def test_damaged_inputs_end_in_a_sentence_or_are_counted(tmp_path: Path) -> None:
    results = list(fuzz(80, 0, KINDS, [], tmp_path))
    assert [result for _, result in results if result.outcome in FAULTS] == []
    assert Counter(result.outcome for _, result in results).keys() >= {"right", "rejected", "told"}


def test_a_record_that_is_neither_document_nor_rejected_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = range(60)
    assert not any(lost(case_of(number, ["jsonl"]), tmp_path) for number in numbers)
    monkeypatch.setattr(Spill, "reject", lambda *_: None)
    assert any(lost(case_of(number, ["jsonl"]), tmp_path) for number in numbers)


def lost(case: Case, folder: Path) -> bool:
    return try_case(case, folder / "home", is_whole=False).outcome == "silently lost"
