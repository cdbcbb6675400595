"""What was pushed is searched at once, beside any release, as if it had been in it all along."""

import itertools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_pipelines import overlay
from embedding_pipelines.errors import ReleaseError, StoreError
from embedding_pipelines.push import Pusher
from embedding_pipelines.releases import read_releases, rollback
from embedding_pipelines.search import Hit, Searcher
from embedding_pipelines.steps.documents import READING
from embedding_pipelines.storage.pushed import MOST_SEGMENTS, pushed_log
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    live_rows,
    run_of,
    run_steps,
    steps,
    write_csv,
    write_pipeline,
)

SOURCE = "source: {kind: csv, path: 'data/*.csv', id: id, text: title, metadata: [cat]}\n"
CHECKS = """\
evaluation:
  known_items: 0
  embedded_again: 0
  may_shrink: 1
  checks: {provider_is_unchanged: off, vectors_belong_to_their_texts: off, input_types_differ: off,
    table_has_rows: off, known_items_are_found: off, not_worse_than_live: off}
"""
REST = f"model: {{provider: hashing, dimensions: 16}}\npartitions: 2\n{CHECKS}"
PUSHED = f"source: {{kind: push, metadata: [cat]}}\n{REST}"
FILES = f"{SOURCE}{REST}"
ROWS = [(f"f{number}", f"text of file {number}", "file") for number in range(6)]


def push(home: Path, *texts: tuple[str, str], name: str = "p", column: str = "title") -> None:
    with Pusher(run_of(home, name).spec, Warehouse(home)) as pusher:
        pusher.put([{"id": key, column: text, "cat": "pushed"} for key, text in texts])


def delete(home: Path, *ids: str) -> None:
    with Pusher(run_of(home, "p").spec, Warehouse(home)) as pusher:
        pusher.delete(ids)


def hits(home: Path, query: str = "text of file", k: int = 50, **options: Any) -> list[Hit]:
    with Searcher(Warehouse(home), "p") as searcher:
        return searcher.search(query, k, **options).hits


def texts(hits: list[Hit]) -> dict[str, str]:
    """By document; no chunk may be there twice."""
    assert len({hit.chunk_id for hit in hits}) == len(hits)
    return {hit.document_id: hit.text for hit in hits}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A home with a release of six documents."""
    write_csv(tmp_path, "a.csv", ROWS)
    write_pipeline(tmp_path, "p", FILES)
    run_steps(tmp_path, "p")
    return tmp_path


def test_an_open_searcher_sees_what_is_put_replaced_and_deleted(files: Path) -> None:
    with Searcher(Warehouse(files), "p") as searcher:
        assert len(searcher.search("text", 50).hits) == 6
        push(files, ("f1", "replaced"), ("new", "text of nobody"))
        delete(files, "f2")
        found = texts(searcher.search("text", 50).hits)
        assert found == {
            **{key: text for key, text, _ in ROWS if key != "f2"},
            "f1": "replaced",
            "new": "text of nobody",
        }
        delete(files, "new")
        assert "new" not in texts(searcher.search("text", 50).hits)


def test_few_rows_beside_many_are_found_as_in_one_table(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hits(searcher: Searcher) -> list[tuple[str, str, float]]:
        found = [
            (hit.document_id, hit.text, round(hit.score, 4))
            for mode in ("vector", "text", "hybrid")
            for hit in searcher.search("text 3 fresh", 50, mode=mode).hits
        ]
        return sorted(found)

    monkeypatch.setattr(overlay, "MANY_ROWS", 0)
    monkeypatch.setattr(overlay, "FEW_SHARE", 0.5)
    with Searcher(Warehouse(files), "p") as searcher:
        push(files, *((f"n{number}", f"text {number}") for number in range(8)))
        hits(searcher)
        for words in ("fresh", "fresh text 3", "text 3"):  # replaced in both tables
            push(files, ("n3", words), ("f1", words))
            delete(files, "n5")
            hits(searcher)
            assert len(searcher.rows.current.overlay._parts.own) == 2
            with Searcher(Warehouse(files), "p") as fresh:
                assert len(fresh.rows.current.overlay._parts.own) == 0  # nobody has searched
                assert hits(searcher) == hits(fresh)
                assert len(fresh.rows.current.overlay._parts.own) == 1
        push(files, *((f"m{number}", f"text {number}") for number in range(8)))
        hits(searcher)
        assert len(searcher.rows.current.overlay._parts.own) == 1  # they were many


def test_what_was_withdrawn_is_gone_though_the_log_was_merged_before_anybody_looked(
    files: Path,
) -> None:
    log = pushed_log(Warehouse(files), "p")
    with Searcher(Warehouse(files), "p") as searcher:
        push(files, ("new", "text of nobody"))
        assert "new" in texts(searcher.search("text", 50).hits)
        log.append([overlay.Change("new", "withdraw")])
        for _ in range(MOST_SEGMENTS):
            log.append([overlay.Change("nobody", "delete")])
        assert log.merge()  # as a run does, whose release is then held back
        assert "new" not in texts(searcher.search("text", 50).hits)


def test_hidden_rows_never_take_the_place_of_others(files: Path) -> None:
    delete(files, *(f"f{number}" for number in range(5)))
    assert [hit.document_id for hit in hits(files, "text of file 0", 1)] == ["f5"]


def test_filters_mean_the_same_for_what_was_pushed(files: Path) -> None:
    push(files, ("new", "text of nobody"))
    assert set(texts(hits(files, filter="cat = 'pushed'"))) == {"new"}
    assert set(texts(hits(files, filter="cat <> 'pushed' AND document_id <> 'f0'"))) == {
        f"f{number}" for number in range(1, 6)
    }
    with pytest.raises(StoreError, match="nope"):
        hits(files, filter="nope = 1")


@pytest.mark.parametrize(
    "compression",
    ["[]", "[float16]", "[int8]", "[binary]", "[{kind: pca, dimensions: 15}, int8]"],
)
def test_scores_and_order_are_those_after_a_run(tmp_path: Path, compression: str) -> None:
    write_csv(tmp_path, "a.csv", [(f"f{at}", f"text {at} of {at % 5}", "x") for at in range(40)])
    write_pipeline(tmp_path, "p", FILES + f"compression: {compression}\n")
    run_steps(tmp_path, "p")
    push(tmp_path, *((f"f{at}", f"other text {at}") for at in range(0, 40, 3)), ("new", "text 3"))
    delete(tmp_path, "f1", "f2")
    before = hits(tmp_path, "text 3 of 4")
    codec = read_releases(run_of(tmp_path, "p").folder).releases[-1].codec
    run_steps(tmp_path, "p")
    release = read_releases(run_of(tmp_path, "p").folder).releases[-1]
    assert release.number == 2
    assert release.codec == codec  # so that all codes are of one codec
    after = hits(tmp_path, "text 3 of 4")
    assert {hit.chunk_id: hit.metadata for hit in before} == {
        hit.chunk_id: hit.metadata for hit in after
    }
    scores = {hit.chunk_id: hit.score for hit in after}
    np.testing.assert_allclose(
        [hit.score for hit in before], [scores[hit.chunk_id] for hit in before], atol=1e-6
    )
    np.testing.assert_allclose(
        [hit.score for hit in before], [hit.score for hit in after], atol=1e-6
    )


def test_a_batch_run_leaves_what_was_pushed_exactly_as_it_was(files: Path) -> None:
    push(files, ("f1", "replaced"), ("new", "text of nobody"))
    delete(files, "f2")
    before = hits(files)
    write_csv(files, "a.csv", [*ROWS, ("f9", "unlike all", "file")])  # f1 and f2 come again
    run_steps(files, "p")
    after = [hit for hit in hits(files) if hit.document_id != "f9"]
    assert {hit.chunk_id: hit for hit in after} == {hit.chunk_id: hit for hit in before}


def test_a_vector_is_the_same_bit_by_bit_and_no_text_is_embedded_twice(files: Path) -> None:
    long = " ".join(f"Sentence {number} of a text that is cut." for number in range(300))
    push(files, ("a", f"<p>Some <b>markup</b> &amp;   spaces</p> {long}"))
    maker = overlay.RowMaker
    searcher = Searcher(Warehouse(files), "p")
    searcher.search("text")
    rows = {row["chunk_id"]: row for row in searcher.rows.current.overlay._parts.many.to_pylist()}
    assert len(rows) > 3
    reports = run_steps(files, "p")
    embedded = [each.statistics for each in reports if each.step == "embeddings"]
    assert sum(each.get("embedded", 0) for each in embedded) == 0
    released = live_rows(files, "p")
    assert {name: released[name] for name in rows} == rows
    assert maker is overlay.RowMaker


def test_pushed_documents_are_searched_before_the_first_release(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "p", PUSHED + "compression: [int8]\n")
    with pytest.raises(ReleaseError, match="no release yet"):
        Searcher(Warehouse(tmp_path), "p")
    push(tmp_path, ("a", "a text"), ("b", "a word"), column="text")
    with Searcher(Warehouse(tmp_path), "p") as searcher:
        result = searcher.search("a text", filter="cat = 'pushed'")
        assert [hit.document_id for hit in result.hits] == ["a", "b"]
        assert result.release == 0
        run_steps(tmp_path, "p")
        assert [hit.document_id for hit in searcher.search("a text").hits] == ["a", "b"]
        delete(tmp_path, "a", "b")
        assert searcher.search("a text").hits == []
    assert hits(tmp_path) == []


def test_pushed_documents_stay_after_a_rollback(files: Path) -> None:
    push(files, ("new", "text of nobody"))
    delete(files, "f1")
    run_steps(files, "p")
    push(files, ("later", "text of nobody"))
    expected = texts(hits(files))
    rollback(run_of(files, "p").folder, None)
    assert texts(hits(files)) == expected


def test_a_failure_while_they_are_laid_over_it_is_made_up_for(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Searcher(Warehouse(files), "p") as searcher:
        push(files, ("new", "text of nobody"))

        def fail(*_: object) -> None:
            raise StoreError("out of order")

        with monkeypatch.context() as patch:
            patch.setattr(overlay.RowMaker, "rows", fail)
            with pytest.raises(StoreError, match="out of order"):
                searcher.search("text")
        assert "new" in texts(searcher.search("text", 50).hits)


def test_what_release_cannot_read_is_said(files: Path) -> None:
    log = pushed_log(Warehouse(files), "p")
    log.append([overlay.Change("bad", "put", {"id": "bad", "title": {"a": 1}})])
    with Searcher(Warehouse(files), "p") as searcher:
        result = searcher.search("text", 50)
    assert len(result.hits) == 6
    (note,) = result.notes
    assert "1 of the documents that were pushed cannot be searched" in note
    assert "'bad'" in note


def test_a_damaged_log_stops_searches_and_runs_alike(files: Path) -> None:
    push(files, ("new", "text of nobody"))
    log = pushed_log(Warehouse(files), "p")
    path = log.path(log.segments()[0])
    path.write_bytes(path.read_bytes().replace(b"nobody", b"nobodY"))
    with pytest.raises(StoreError, match="damaged"):
        hits(files)
    with pytest.raises(StoreError, match="damaged"):
        run_steps(files, "p")
    assert len(live_rows(files, "p")) == 6


def test_a_lost_log_stops_a_run_before_it_drops_documents(files: Path) -> None:
    push(files, ("new", "text of nobody"))
    run_steps(files, "p")
    shutil.rmtree(Warehouse(files).pushed)
    with pytest.raises(StoreError, match="the folder is lost"):
        run_steps(files, "p")
    assert len(live_rows(files, "p")) == 7


@dataclass
class Model:
    """What must be true, in dictionaries."""

    files: dict[str, dict[str, str]] = field(default_factory=dict)  # texts by id, by file
    words: dict[str, tuple[int, str | None]] = field(default_factory=dict)  # None: deleted
    withdrawn: set[str] = field(default_factory=set)
    count: int = 0
    released: Mapping[str, str] | None = None
    absorbed: int = 0

    def put(self, name: str, text: str | None) -> None:
        self.count += 1
        self.words[name] = self.count, text
        self.withdrawn.discard(name)

    def withdraw(self, name: str) -> None:
        self.count += 1
        self.words.pop(name, None)
        self.withdrawn.add(name)

    @property
    def documents(self) -> dict[str, str]:
        """After a run."""
        found = dict[str, str]()
        for rows in (self.files[name] for name in sorted(self.files, reverse=True)):
            found |= rows  # of one id the record of the first file counts
        for name, (_, text) in self.words.items():
            if text is None:
                found.pop(name, None)
            else:
                found[name] = text
        return found

    @property
    def visible(self) -> dict[str, str]:
        """To a search."""
        found = dict(self.released or {})
        for name, (number, text) in self.words.items():
            if self.released is None or number > self.absorbed:
                if text is None:
                    found.pop(name, None)
                else:
                    found[name] = text
        return found

    def release(self) -> None:
        self.released, self.absorbed = self.documents, self.count


IDS = st.sampled_from(["a", "b", "c", "d", "e"])
WORDS = st.sampled_from(["one", "two", "three words here", "four", "five of it", "six"])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), IDS, WORDS),
        st.tuples(st.just("put"), IDS, WORDS),
        st.tuples(st.just("delete"), IDS),
        st.tuples(st.just("withdraw"), IDS),
        st.tuples(
            st.just("file"), st.sampled_from(["1.csv", "2.csv"]), st.dictionaries(IDS, WORDS)
        ),
        st.tuples(st.just("run")),
        st.tuples(st.just("killed run"), st.integers(0, 9)),
        st.tuples(st.just("many")),
    ),
    max_size=9,
)


def _killed_run(home: Path, after: int) -> None:
    """A run whose process ends after some reports."""
    with run_of(home, "p") as run:
        for _ in itertools.islice(steps(run), after):
            pass


def _perform(home: Path, model: Model, operation: tuple[Any, ...], number: int) -> None:
    kind, *rest = operation
    # Two writers, who take turns.
    with (
        Pusher(run_of(home, "p").spec, Warehouse(home)) as one,
        Pusher(run_of(home, "p").spec, Warehouse(home)) as other,
    ):
        pusher = (one, other)[number % 2]
        if kind == "put":
            pusher.put([{"id": rest[0], "title": rest[1], "cat": "pushed"}])
            model.put(*rest)
        elif kind == "delete":
            pusher.delete(rest)
            model.put(rest[0], None)
        elif kind == "withdraw":
            pusher.withdraw(rest)
            model.withdraw(rest[0])
        elif kind == "many":  # so many that the log is merged
            for at in range(18):
                (one, other)[at % 2].put([{"id": f"m{at % 3}", "title": f"one {at}", "cat": "x"}])
                model.put(f"m{at % 3}", f"one {at}")
        elif kind == "file":
            name, rows = rest
            write_csv(home, name, [(key, text, "file") for key, text in rows.items()])
            model.files[name] = rows
        elif kind == "killed run":
            _killed_run(home, rest[0])
        else:
            run_steps(home, "p")
            model.release()


@pytest.mark.slow
@settings(max_examples=12)
@given(OPERATIONS)
def test_searches_and_tables_are_those_of_a_rebuild_from_nothing(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[Any, ...]]
) -> None:
    home, model = tmp_path_factory.mktemp("home"), Model()
    write_pipeline(home, "p", FILES + "")
    path = home / "pipelines" / "p.yaml"
    path.write_text(
        path.read_text().replace("metadata: [cat]", "metadata: [cat], duplicates: first")
    )
    for name, rows in (("1.csv", {"a": "one", "b": "two"}), ("2.csv", {"b": "four", "z": "six"})):
        write_csv(home, name, [(key, text, "file") for key, text in rows.items()])
        model.files[name] = rows
    run_steps(home, "p")
    model.release()
    with Searcher(Warehouse(home), "p") as opened:
        for number, operation in enumerate(operations):
            _perform(home, model, operation, number)
            if operation[0] == "killed run" and _has_released(home, model):
                model.release()
            assert texts(hits(home)) == model.visible, (operation, operations)
            if model.released is not None and operation[0] != "file":
                found = texts(opened.search("text", 50).hits)
                # It stays on its release; what was pushed since is laid over it.
                assert {key: found.get(key) for key in model.words} == {
                    key: model.visible.get(key) for key in model.words
                }
    run_steps(home, "p")
    model.release()
    assert texts(hits(home)) == model.documents
    assert not list((Warehouse(home).pipeline("p").folder / "documents").glob(f"{READING}*"))
    other = tmp_path_factory.mktemp("rebuilt")
    for part in ("pipelines", "data"):
        ignore: Callable[..., list[str]] = lambda folder, names: [  # noqa: E731
            name for name in names if folder.endswith("warehouse") and name != "pushed"
        ]
        shutil.copytree(home / part, other / part, ignore=ignore)
    if model.documents:
        run_steps(other, "p")
        left, right = live_rows(home, "p"), live_rows(other, "p")
        assert_same_rows(left, right)


def _has_released(home: Path, model: Model) -> bool:
    release = read_releases(run_of(home, "p").folder).newest
    assert release is not None
    return release.pushed == model.count and release.rows == len(model.documents)


@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_words_find_what_was_pushed_as_they_will_after_a_run(tmp_path: Path, mode: str) -> None:
    rows = [
        (f"f{at}", f"a fox {'and a hare ' * (at % 3)}in the {at}th wood", "x") for at in range(30)
    ]
    write_csv(tmp_path, "a.csv", rows)
    write_pipeline(tmp_path, "p", f"{FILES}search: {{mode: {mode}}}\n")
    run_steps(tmp_path, "p")
    push(tmp_path, ("owl", "an owl hunts hares"), ("fox", "foxes, foxes, foxes"), ("f3", "nothing"))
    delete(tmp_path, "f4")
    with Searcher(Warehouse(tmp_path), "p") as searcher:
        before = [searcher.search(query, 40) for query in ("owl", "running fox", "hares", "zebra")]
    run_steps(tmp_path, "p")
    with Searcher(Warehouse(tmp_path), "p") as searcher:
        after = [searcher.search(query, 40) for query in ("owl", "running fox", "hares", "zebra")]
    for early, late in zip(before, after, strict=True):
        assert early.mode == mode
        assert not early.notes
        assert set(texts(early.hits)) == set(texts(late.hits))
        if late.hits:
            assert early.hits[0].document_id == late.hits[0].document_id, early.query


def test_a_release_in_memory_is_overlaid_as_the_stored_one(files: Path) -> None:
    with Searcher(Warehouse(files), "p") as stored, Searcher(Warehouse(files), "p") as held:
        assert held.load_memory()
        push(files, ("f1", "replaced"), ("new", "text of nobody"))
        delete(files, "f2", "f3", "f4")
        for k in (1, 3, 50):
            for query in ("text of file 2", "text of nobody", "replaced"):
                left, right = stored.search(query, k).hits, held.search(query, k).hits
                assert [hit.chunk_id for hit in left] == [hit.chunk_id for hit in right]
                np.testing.assert_allclose(
                    [hit.score for hit in left], [hit.score for hit in right], atol=5e-4
                )


def test_what_programs_delete_is_no_source_that_has_shrunk(tmp_path: Path) -> None:
    rows = [(f"f{at}", f"text {at}", "x") for at in range(40)]
    write_csv(tmp_path, "a.csv", rows)
    write_pipeline(
        tmp_path, "p", f"{SOURCE}model: {{provider: hashing}}\nevaluation: {{known_items: 8}}\n"
    )
    run_steps(tmp_path, "p")
    delete(tmp_path, *(f"f{at}" for at in range(30)), "nobody")
    run_steps(tmp_path, "p")
    assert len(live_rows(tmp_path, "p")) == 10
    write_csv(tmp_path, "a.csv", rows[:33])  # and now most of the rest is lost
    with pytest.raises(ReleaseError, match=r"are gone, and evaluation\.may_shrink"):
        run_steps(tmp_path, "p")
