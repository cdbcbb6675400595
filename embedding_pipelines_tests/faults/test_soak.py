"""The soak's own judgement: what the source held when, and answers that are wrong."""

import random
from pathlib import Path

from embedding_pipelines_tests.faults.soak import Change, History, Soak, Writer, _releases_of


def history() -> History:
    """One document: `a` from second 10 on, `b` from 20 to 22 on, gone from 30 on."""
    made = History()
    made.add([Change("d", "a", 10, 10), Change("d", "b", 20, 22), Change("d", None, 30, 30)])
    return made


def test_what_a_document_was_between_two_moments() -> None:
    held = history().held
    assert held("d", None, 0, 5)
    assert held("d", "a", 12, 15)
    assert held("d", "a", 21, 21)  # it was being replaced
    assert held("d", "b", 21, 21)
    assert not held("d", "a", 23, 29)
    assert not held("d", None, 23, 29)
    assert not held("d", "b", 31, 40)
    assert held("d", None, 31, 40)
    assert not held("other", "a", 0, 40)


def test_stale_lost_doubled_and_older_answers_are_violations() -> None:
    seen = Soak(history())
    windows = {1: (12.0, 15.0), 2: (24.0, 28.0)}
    good = [
        {"release": 1, "table": {"d": "a"}, "rows": 1, "ids": 1},
        {"release": 2, "hits": {"d": "b"}},
    ]
    seen.answers = good
    seen._judge_answers(windows)
    assert seen.problems == []
    seen.answers = [
        *good,
        {"release": 2, "hits": {"d": "a"}},  # stale
        {"release": 2, "table": {}, "rows": 0, "ids": 0},  # lost
        {"release": 2, "table": {"d": "b"}, "rows": 2, "ids": 1},  # doubled
        {"release": 1, "hits": {"d": "a"}},  # of an older release than was live
    ]
    seen._judge_answers(windows)
    assert len(seen.problems) == 4


def test_when_a_change_was_released() -> None:
    tables = [{"release": 1, "table": {"d": "a"}}, {"release": 2, "table": {}}]
    released = {1: 16.0, 2: 40.0}
    found = [at for _, at in _releases_of(history().of("d"), tables, released)]
    assert found == [16.0, 40.0, 40.0]


def test_the_writer_writes_down_what_its_files_hold(tmp_path: Path) -> None:
    made = History()
    writer = Writer(tmp_path / "data" / "notes", made, random.Random(0))
    writer.begin()
    for _ in range(60):
        writer.change()
    rows = [path.read_text().count("\n") for path in (tmp_path / "data" / "notes").iterdir()]
    assert sum(rows) == len(writer.state())
    last = {each: made.of(each)[-1].text for each in made.documents()}
    assert {each: text for each, text in last.items() if text is not None} == writer.state()
