"""Permissions: a document is found by those alone whom they name now, and nothing is found where they
cannot be read."""

import contextlib
import gzip
import json
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.access import (
    LOOK_SECONDS,
    NAMED_IDS,
    OPERATOR,
    SEES_NOTHING,
    Access,
    Permitted,
    Visible,
)
from embedding_pipelines.errors import ConfigError, PermissionsError, PermissionsLostError
from embedding_pipelines.push import Pusher
from embedding_pipelines.search import Searcher, search
from embedding_pipelines.search.unreleased import UnreleasedTexts
from embedding_pipelines.spec.load import find_pipeline, parse_pipeline, read_draft
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import TestBucket
from embedding_pipelines_tests.chain import (
    copy_home,
    run_of,
    run_steps,
    steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING

ROWS = [
    (f"id-{n}", f"animal{n} in room{n % 5}", "even" if n % 2 == 0 else "odd") for n in range(60)
]
PERMISSIONS = "permissions: {kind: csv, path: acl.csv, id: document, principals: who}\n"
QUERY = "animal7 in room2"


def write_acl(home: Path, rows: list[tuple[str, str]], end: str = "\n") -> None:
    """In one step, as the documentation says."""
    text = "\n".join(["document,who", *map(",".join, rows)]) + end
    draft = home / ".acl"
    draft.write_text(text)
    draft.replace(home / "acl.csv")


def settle(path: Path) -> None:
    """As if the file had been written long ago."""
    os.utime(path, (0, 0))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("permissions")
    write_pipeline(home, "p", HASHING + PERMISSIONS)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture
def home(built: Path, home: Path) -> Path:
    copy_home(built, home)
    write_acl(home, [("id-7", "ann"), ("id-3", "ann"), ("id-3", "sales"), ("id-50", "bob")])
    return home


def ids(searcher: Searcher, principals: Any, query: str = QUERY, **options: Any) -> list[str]:
    result = searcher.search(query, 60, principals=principals, **options)
    return sorted({hit.document_id for hit in result.hits})


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_a_principal_finds_what_the_permissions_name(home: Path, mode: str) -> None:
    with Searcher(home, "p") as searcher:
        query = "animal7 animal3 animal50 room2 room0 room3 in"

        def find(*names: str) -> list[str]:
            return ids(searcher, names, query, mode=mode)

        def notes(names: list[str]) -> list[str]:
            options: dict[str, Any] = {"mode": mode}
            return searcher.search(query, 60, principals=names, **options).notes

        assert find("ann") == ["id-3", "id-7"]
        assert find("sales", "bob") == ["id-3", "id-50"]
        assert find("nobody") == find() == []
        for names in (["nobody"], []):  # who may see something hears nothing of the kind
            assert SEES_NOTHING in notes(names)
        assert SEES_NOTHING not in notes(["ann"])
        assert len(ids(searcher, OPERATOR, query, mode=mode)) == 60
        results = searcher.search([query, query], 60, mode=mode, principals=["bob"])  # type: ignore[call-overload]
        assert [[hit.document_id for hit in each.hits] for each in results] == [["id-50"]] * 2


def test_who_asks_is_said(home: Path) -> None:
    with Searcher(home, "p") as searcher:
        with pytest.raises(PermissionsError, match="say for whom it is read: by `principals="):
            searcher.search(QUERY)
        wrong: list[Any] = ["ann", ["ann", ""], [1]]
        for principals in wrong:
            with pytest.raises(ConfigError, match="Write a list of names"):
                searcher.search(QUERY, principals=principals)
    assert search(home, "p", QUERY, principals=["bob"]).hits[0].document_id == "id-50"


def test_a_change_is_seen_by_the_next_query_and_no_run(home: Path) -> None:
    with Searcher(home, "p") as searcher:
        assert ids(searcher, ["ann"]) == ["id-3", "id-7"]
        write_acl(home, [("id-3", "ann"), ("id-50", "bob")])
        assert ids(searcher, ["ann"]) == ["id-3"]
        write_acl(home, [("id-50", "bob"), ("id-50", "ann")])
        assert ids(searcher, ["ann"]) == ["id-50"]
        write_acl(home, [("id-50", "bob")])
        assert ids(searcher, ["ann"]) == []


def test_a_change_within_a_tick_of_the_clock_and_of_equal_size_is_seen(home: Path) -> None:
    path = home / "acl.csv"
    with Searcher(home, "p") as searcher:
        for _ in range(20):
            for name in ("ann", "bob"):
                path.write_text(f"document,who\nid-7,{name}\n")
                assert ids(searcher, [name]) == ["id-7"]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: path.unlink(), "permissions.path 'acl.csv'"),
        (lambda path: path.write_text(""), "the file is empty"),
        (lambda path: path.write_text("document,who\n"), "names no document"),
        (lambda path: path.write_text("document,who\nid-7,ann"), "the last line has no end"),
        (lambda path: path.write_text("document,who\nid-7,ann\nid-3\n"), "acl.csv:3: "),
        (lambda path: path.write_text("id,names\nid-7,ann\n"), "Set permissions.id to one of"),
        (lambda path: path.write_text("document,x\n1,a\n"), "Set permissions.principals to one of"),
        (lambda path: (path.unlink(), path.mkdir()), "acl.csv"),
    ],
)
def test_what_cannot_be_read_answers_nothing(
    home: Path, break_it: Callable[[Path], Any], words: str
) -> None:
    with Searcher(home, "p") as searcher:
        assert ids(searcher, ["ann"])
        break_it(home / "acl.csv")
        for _ in range(2):  # nothing old answers later
            with pytest.raises(PermissionsError, match="'p' answers nothing") as caught:
                searcher.search(QUERY, principals=["ann"])
        assert words in str(caught.value)
        assert "source." not in str(caught.value)


def test_replacing_the_file_under_load_shows_one_state_or_the_other(home: Path) -> None:
    """Both states are whole, so no search may see a part of either. One that finds the file changed
    whenever it reads it answers nothing."""
    states = [[(f"id-{n}", "ann") for n in range(half, 60, 2)] for half in (0, 1)]
    write_acl(home, states[0])
    is_over, seen = threading.Event(), set[tuple[str, ...]]()

    def replace() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            write_acl(home, states[number % 2])
            is_over.wait(0.02)

    with Searcher(home, "p") as searcher:
        writer = threading.Thread(target=replace)
        writer.start()
        try:
            for _ in range(40):
                with contextlib.suppress(PermissionsLostError):
                    seen.add(tuple(ids(searcher, ["ann"])))
        finally:
            is_over.set()
            writer.join()
    assert seen
    assert seen <= {tuple(sorted(name for name, _ in state)) for state in states}


def test_a_file_that_is_rewritten_in_place_opens_nothing_for_a_moment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, access = home / "pipelines" / "p.yaml", Access(home, "p", None)
    seen = Visible(frozenset({"id-50"}))
    assert access.visible(["bob"]) == seen
    for end in range(len(HASHING), len(HASHING + PERMISSIONS) + 1):
        path.write_text((HASHING + PERMISSIONS)[:end])
        with contextlib.suppress(PermissionsLostError):
            assert access.visible(["bob"]) == seen
    settle(path)

    def cut(file: Path) -> Any:  # after the look at its stamp
        file.write_text(HASHING)
        return read_draft(file)

    assert access.visible(["bob"]) == seen
    monkeypatch.setattr("embedding_pipelines.access.read_draft", cut)
    os.utime(path, (1, 1))
    assert access.visible(["bob"]) == seen


NAMED = [("id-7", ["ann", "bob"]), ("id-3", ["bob"])]


def write_table(home: Path, kind: str, pairs: list[tuple[str, list[str]]] = NAMED) -> str:
    """Permissions of one kind; their section of a pipeline file."""
    options = f"kind: {kind}, path: acl.{kind}"
    rows = [{"document": name, "who": who} for name, who in pairs]
    if kind == "jsonl":
        (home / "acl.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        (home / "acl.json").write_text(json.dumps(rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), home / "acl.parquet")
    elif kind in ("csv", "csv.gz"):
        lines = [f'{name},"{each}"' for name, who in pairs for each in who]
        text = "\n".join(["document,who", *lines, ""]).encode()
        (home / f"acl.{kind}").write_bytes(gzip.compress(text) if kind == "csv.gz" else text)
        options = f"kind: csv, path: acl.{kind}"
    elif kind == "sql":
        with sqlite3.connect(home / "acl.db") as database:
            database.execute("CREATE TABLE acl (document, who)")
            values = [(name, json.dumps(who) if who[1:] else who[0]) for name, who in pairs]
            database.executemany("INSERT INTO acl VALUES (?, ?)", values)
        database.close()
        options = "kind: sql, url: sqlite:///acl.db, table: acl"
    return f"permissions: {{{options}, id: document, principals: who}}\n"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv.gz", "sql"])
def test_permissions_are_in_any_table(home: Path, kind: str) -> None:
    write_pipeline(home, "p", HASHING + write_table(home, kind))
    with Searcher(home, "p") as searcher:
        assert ids(searcher, ["bob"]) == ["id-3", "id-7"]
        assert ids(searcher, ["ann"]) == ["id-7"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv", "sql"])
def test_a_line_break_in_a_name_makes_no_other_name_of_it(home: Path, kind: str) -> None:
    pairs = [("id-7", ["ann\nbob"]), ("id-3", ["ann", " "])]
    write_pipeline(home, "p", HASHING + write_table(home, kind, pairs))
    access = Access(home, "p", None)
    assert access.visible(["ann"]) == Visible(frozenset({"id-3"}))
    assert access.visible(["bob"]) == Visible(frozenset())
    assert access.visible(["ann\nbob"]) == Visible(frozenset({"id-7"}))


def test_a_database_is_looked_at_again_after_some_seconds(home: Path) -> None:
    write_pipeline(home, "p", HASHING + write_table(home, "sql"))
    now = [0.0]
    access = Access(home, "p", None, clock=lambda: now[0])
    assert access.visible(["ann"]) == Visible(frozenset({"id-7"}))
    with sqlite3.connect(home / "acl.db") as database:
        database.execute("UPDATE acl SET who = 'ann'")
    database.close()
    now[0] = LOOK_SECONDS - 0.1
    assert access.visible(["ann"]) == Visible(frozenset({"id-7"}))
    now[0] = LOOK_SECONDS
    assert access.visible(["ann"]) == Visible(frozenset({"id-3", "id-7"}))
    os.unlink(home / "acl.db")
    now[0] *= 3
    with pytest.raises(PermissionsError, match="there is no file"):
        access.visible(["ann"])


def test_the_pipeline_file_of_today_counts_and_a_broken_one_answers_nothing(home: Path) -> None:
    path = home / "pipelines" / "p.yaml"
    with Searcher(home, "p") as searcher:
        assert ids(searcher, ["ann"]) == ["id-3", "id-7"]
        path.write_text(HASHING)  # its end, with the permissions, may not be written yet
        assert ids(searcher, ["ann"]) == ["id-3", "id-7"]
        settle(path)  # whoever writes the file opens the pipeline to everybody
        assert len(ids(searcher, None)) == len(ids(searcher, ["ann"])) == 60
        for broken in ("permissions: {kind: csv}\n", "permissions: [\n"):
            path.write_text(HASHING + broken)
            with pytest.raises(PermissionsError, match=r"p\.yaml:\d+: "):
                searcher.search(QUERY, principals=["ann"])
        path.write_text(HASHING + PERMISSIONS + "nonsense: 1\n")  # what is right of it counts
        assert ids(searcher, ["ann"]) == ["id-3", "id-7"]
        path.unlink()  # the release's count
        assert ids(searcher, ["ann"]) == ["id-3", "id-7"]
        with pytest.raises(PermissionsError, match="say for whom"):
            searcher.search(QUERY)


@pytest.mark.parametrize(
    "text",
    [
        None,  # between two steps of an editor
        "",
        HASHING.replace("source:", "source: ["),
        HASHING + PERMISSIONS.replace("permissions", "permision"),
        HASHING.replace("model:", "  permissions: {kind: csv}\nmodel:"),
        HASHING + "permiss",
        (HASHING + PERMISSIONS).encode("utf-16"),
    ],
)
def test_a_file_that_is_away_or_broken_takes_no_permissions_away(home: Path, text: Any) -> None:
    """Also those that no release has yet."""
    path, access = home / "pipelines" / "p.yaml", Access(home, "p", None)
    assert access.visible(["bob"]) == Visible(frozenset({"id-50"}))
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with contextlib.suppress(PermissionsLostError):
        assert access.visible(["bob"]) == Visible(frozenset({"id-50"}))


def test_what_several_see_is_held_within_bounds(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.access.UNION_IDS", 3)
    access = Access(home, "p", None)
    for _ in range(2):
        for names in (["ann", "sales"], ["ann", "bob"], ["sales", "bob"]):
            assert access.visible(names) is not None
    assert access._table is not None
    assert sum(len(each.ids) for each in access._table._unions.values()) <= 3


def test_permissions_of_an_edit_count_before_a_run_and_make_a_release_without_embedding(
    home: Path,
) -> None:
    write_pipeline(home, "p", HASHING)
    run_steps(home, "p")
    with Searcher(home, "p") as searcher:
        assert searcher.release.spec.permissions is None
        write_pipeline(home, "p", HASHING + PERMISSIONS)
        assert ids(searcher, ["ann"]) == ["id-3", "id-7"]
    reports = run_steps(home, "p")
    assert {report.step for report in reports if report.changed} == {"release"}
    with Searcher(home, "p") as searcher:
        (home / "pipelines" / "p.yaml").unlink()
        assert ids(searcher, ["ann"]) == ["id-3", "id-7"]


def test_what_is_pushed_is_seen_by_those_whom_the_permissions_name(home: Path) -> None:
    with run_of(home, "p") as run, Pusher(run.spec, run.warehouse, run.model) as pusher:
        pusher.put([{"id": name, "title": QUERY} for name in ("id-7", "new", "secret")])
    write_acl(home, [("id-7", "ann"), ("new", "ann"), ("id-50", "bob")])
    with Searcher(home, "p") as searcher:
        for mode in ("vector", "text", "hybrid"):
            assert ids(searcher, ["ann"], mode=mode) == ["id-7", "new"]
        assert searcher.load_memory()
        assert ids(searcher, ["ann"]) == ["id-7", "new"]
        assert searcher.search(QUERY, 1, principals=["ann"]).hits[0].document_id in ("id-7", "new")


def test_what_is_held_in_memory_gives_the_same(home: Path) -> None:
    write_acl(home, [(f"id-{n}", "ann") for n in range(0, 60, 2)] + [("id-1", "bob")])
    with Searcher(home, "p") as searcher:
        stored = [searcher.search(QUERY, k, principals=["ann"]).hits for k in (1, 5, 40)]
        assert searcher.load_memory()
        held = [searcher.search(QUERY, k, principals=["ann"]).hits for k in (1, 5, 40)]
        names = [[hit.document_id for hit in hits] for hits in stored]
        assert [[hit.document_id for hit in hits] for hits in held] == names
        assert [len(hits) for hits in held] == [1, 5, 30]
        assert ids(searcher, ["bob"]) == ["id-1"]


def test_a_filter_cannot_widen_what_is_seen(home: Path) -> None:
    with Searcher(home, "p") as searcher:
        for condition in ("cat = 'odd' OR true", "true", "document_id = 'id-50'"):
            found = ids(searcher, ["ann"], filter=condition)
            assert set(found) <= {"id-3", "id-7"}
        with pytest.raises(Exception, match="cannot be used"):
            searcher.search(QUERY, 5, "true) OR (true", principals=["ann"])


def test_texts_before_the_first_release_obey(home: Path) -> None:
    write_pipeline(home, "q", HASHING + PERMISSIONS)
    with run_of(home, "q") as run:
        for step, _ in steps(run):
            if step == "embeddings":
                break
    texts = UnreleasedTexts(Warehouse(home), "q")
    assert [hit.document_id for hit in texts.search("animal7", principals=["ann"]).hits] == ["id-7"]
    assert texts.search("animal7", principals=["bob"]).hits == []
    with pytest.raises(PermissionsError):
        texts.search("animal7")


class Ranked:
    """A table whose rows are in a fixed order, which notes what it is asked."""

    def __init__(self, rows: int) -> None:
        self.rows, self.calls = rows, list[tuple[int, bool]]()

    def search(self, vector: Any, k: int, *rest: Any) -> pa.Table:
        only = rest[-1]
        self.calls.append((k, only is not None))
        every = [f"{n:06d}" for n in range(self.rows)]
        names = every if only is None else [name for name in every if name in set(only)]
        return pa.table({"document_id": names[:k]})

    search_text = search


def test_of_many_visible_documents_a_wider_search_finds_enough_or_the_store_is_told() -> None:
    table, vector = Ranked(10_000), np.zeros(2)
    names = [f"{n:06d}" for n in range(10_000)]

    def first(visible: list[str]) -> list[str]:
        table.calls.clear()
        permitted = Permitted(table, Visible(frozenset(visible)))
        found: list[str] = permitted.search(vector, 5, "cosine", None, 1)["document_id"].to_pylist()
        return found

    assert first(names[::2]) == names[:10:2]
    assert table.calls == [(20, False)]
    assert first(names[100:]) == names[100:105]
    assert table.calls == [(20, False), (160, False)]
    assert first(names[-NAMED_IDS - 1 :]) == names[-NAMED_IDS - 1 :][:5]
    assert table.calls == [(20, False), (160, False), (5, True)]
    assert first(names[-10:]) == names[-10:-5]
    assert table.calls == [(5, True)]


def test_what_is_like_a_document_is_told_to_those_who_may_see_it(home: Path) -> None:
    with Searcher(home, "p") as searcher:

        def like(names: str | list[str], *principals: str) -> list[str]:
            result = searcher.search_like(names, 60, principals=principals)
            return [hit.document_id for hit in result.hits]

        assert like("id-7", "ann") == ["id-3"]
        assert like("id-3", "sales") == []
        assert len(searcher.search_like("id-50", 60, principals=OPERATOR).hits) == 59
        for names in ("id-50", ["id-7", "id-50"]):  # as if there were none
            with pytest.raises(ConfigError, match="has no document 'id-50'"):
                like(names, "ann", "sales")
        with pytest.raises(PermissionsError):
            searcher.search_like("id-7")


def test_a_wrong_section_is_told() -> None:
    for text, words in {
        "{kind: csv, path: a.csv}": "permissions: needs `id`",
        "{kind: markdown, path: a, id: b}": "permissions.kind: 'markdown' is none of csv",
        "{kind: csv, path: a.csv, id: b, text: c}": "permissions.text: is an option of documents",
        "{kind: csv, path: a.csv, id: b, principals: []}": "permissions.principals: must name",
        "{kind: csv, path: a.csv, id: b, pat: c}": "pat: is no option here",
        "yes": "permissions: ",
    }.items():
        with pytest.raises(ConfigError) as caught:
            parse_pipeline(f"{HASHING}permissions: {text}\n", "p", "p.yaml")
        assert words in str(caught.value)


def test_the_section_is_stored_as_it_is_written(home: Path) -> None:
    spec = find_pipeline("p", home)
    written = spec.model_dump(mode="json")["permissions"]
    assert written["principals"] == "who"
    assert "text" not in written
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec


def test_permissions_in_a_bucket_are_looked_at_again_after_some_seconds(
    home: Path, bucket: TestBucket
) -> None:
    bucket.put("acl.csv", "document,who\nid-7,ann\n")
    section = f"{{kind: csv, path: {bucket.uri}/acl.csv, id: document, principals: who}}"
    write_pipeline(home, "p", f"{HASHING}permissions: {section}\n")
    now = [0.0]
    access = Access(home, "p", None, clock=lambda: now[0])
    assert access.visible(["ann"]) == Visible(frozenset({"id-7"}))
    bucket.put("acl.csv", "document,who\nid-3,ann\n")
    now[0] = LOOK_SECONDS
    assert access.visible(["ann"]) == Visible(frozenset({"id-3"}))
    bucket.delete("acl.csv")
    now[0] *= 2
    with pytest.raises(PermissionsLostError, match="answers nothing"):
        access.visible(["ann"])
