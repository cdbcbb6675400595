"""Tables and queries of SQLite files; `test_postgres.py` has what a server does otherwise."""

import datetime
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.plugins import parse
from embedding_pipelines.sources import sql
from embedding_pipelines.sources.base import ReadLog, Source
from embedding_pipelines.steps.pending import pending
from embedding_pipelines_tests.chain import live_rows, report, run_of, run_recorded, write_pipeline
from embedding_pipelines_tests.contracts_sources import check_source, read

PASSWORD = "pärlan#4711@/:x"
TABLE = """
create table articles (id integer primary key, title text, body text, price, added text,
                       stock real, tags text, extra text, edited integer default 1);
insert into articles (id, title, body, price, added, stock, tags, extra) values
    (1, 'Red chair', 'for the kitchen', 49.9, '2026-01-05', 1.0, '["oak"]', '{"maker": {"no": 1.50}}'),
    (2, 'Oak table', null, 199, '2026-02-11 10:00:00', 1e999, null, null);
"""


class Shop:
    """A database in a file of the home folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.path = home, home / "data" / "shop.db"
        self.path.parent.mkdir(exist_ok=True)
        self.run(TABLE)

    def run(self, statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executescript(statements)

    def source(self, **options: Any) -> Source:
        return make({"url": "sqlite:///data/shop.db", "table": "articles"} | options)

    def stamp(self, **options: Any) -> tuple[int, ...]:
        (part,) = self.source(**options).files(self.home)
        return part.stamp


def make(options: dict[str, Any]) -> Source:
    values = {"kind": "sql", "id": "id", "text": ["title", "body"], **options}
    source = parse("sources", Source, {name: value for name, value in values.items() if value})
    assert isinstance(source, Source)
    return source


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_rows_of_a_table_are_documents(shop: Shop) -> None:
    kinds = {
        "price": "float",
        "added": "timestamp",
        "tags": "list[string]",
        "extra.maker.no": "string",
    }
    source = shop.source(metadata={**kinds, "stock": "int"})
    documents, _ = check_source(source, shop.home, 2)
    first, second = documents
    assert first == {
        "document_id": "1",
        "text": "Red chair\nfor the kitchen",
        "source_file": "articles",
        "source_row": 1,
        "price": 49.9,
        "added": datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC),
        "tags": ["oak"],
        "extra_maker_no": "1.50",
        "stock": 1,
    }
    assert (second["text"], second["price"], second["tags"]) == ("Oak table", 199.0, None)
    _, _, (log,) = read(source, shop.home)
    assert log.absent["stock"] == {"inf": 1}


def test_a_query_is_a_table(shop: Shop) -> None:
    query = """
        select id, title || ' :x' as body, '12:30' as "time" -- of day; nothing else
        from articles where title like 'Red%' -- no ;"""
    source = shop.source(table=None, query=query, text="body", metadata=["time"])
    ((document,), _) = check_source(source, shop.home, 1)
    assert (document["text"], document["time"]) == ("Red chair :x", "12:30")
    assert document["source_file"] == "query"


def test_a_view_and_a_table_with_an_odd_name_are_read(shop: Shop) -> None:
    shop.run('create view "My ""View" as select id, title as "select", body from articles')
    source = shop.source(table='My "View', text=["select", "body"])
    documents, _ = check_source(source, shop.home, 2)
    assert documents[1]["text"] == "Oak table"


def test_rows_that_are_no_documents_are_rejected_with_their_values(shop: Shop) -> None:
    shop.run(
        """delete from articles;
        insert into articles (id, title, price) values (1, x'ff00', 1), (2, cast(x'ff41' as text), 2),
            (null, 'fine', 3), (4, 'a word', 'cheap'), (5, x'616263', 5)"""
    )
    source = shop.source(metadata={"price": "int"}, max_rejected=1.0)
    documents, rejections = check_source(source, shop.home, 2, 3)
    assert [row["text"] for row in documents] == ["fine", "abc"]
    assert [each.reason.split(";")[0] for each in rejections] == [
        "column 'title' is binary data, not text",
        "column 'title' is not valid UTF-8",
        "column 'price' is 'cheap', not int",
    ]
    assert json.loads(rejections[2].raw) == {
        "id": 4,
        "title": "a word",
        "body": None,
        "price": "cheap",
    }


def test_every_edit_changes_the_stamp_and_nothing_else_does(shop: Shop) -> None:
    edits = [
        "update articles set body = 'new' where id = 2",
        "insert into articles (id, title) values (3, 'Lamp')",
        "delete from articles where id = 3",  # back to what it was
        "delete from articles where id = 1; insert into articles (id, title) values (9, 'Bed')",
    ]
    stamps = [shop.stamp()]
    for edit in edits:
        assert shop.stamp() == stamps[-1]
        shop.run(edit)
        stamps.append(shop.stamp())
    assert stamps[3] == stamps[1]
    assert len(set(stamps)) == len(stamps) - 1
    shop.run("update articles set stock = 77")  # no column of the pipeline
    assert shop.stamp() == stamps[-1]


def test_with_a_version_only_ids_and_versions_are_looked_at(shop: Shop) -> None:
    before = shop.stamp(version="edited")
    shop.run("update articles set body = 'unsaid' where id = 2")
    assert shop.stamp(version="edited") == before
    seen = [before]
    for edit in (
        "update articles set edited = 7 where id = 2",
        "update articles set edited = 5 where id = 1",  # an older transaction commits later
        # As many rows, and the same newest version.
        "delete from articles where id = 1; insert into articles (id, edited) values (3, 5)",
    ):
        shop.run(edit)
        seen.append(shop.stamp(version="edited"))
    assert len(set(seen)) == 4


def test_the_order_of_rows_is_no_change(shop: Shop) -> None:
    query = "select * from articles order by id {}"
    stamps = {shop.stamp(table=None, query=query.format(order)) for order in ("asc", "desc")}
    assert len(stamps) == 1


def test_what_is_not_there_is_named_with_what_is(shop: Shop) -> None:
    shop.run("create view offers as select * from articles")
    for options, words in (
        (
            {"table": "artikles"},
            "there is no such table; the database has 'articles', 'offers'."
            r" Did you mean 'articles'\? Set source.table",
        ),
        ({"table": "other.articles"}, "other.articles: "),
        (
            {"text": "titel"},
            "articles: column 'titel' is missing; found 'id', 'title', .* Did you "
            "mean 'title'\\? Set source.text",
        ),
        ({"version": "editd"}, "column 'editd' is missing; .* Set source.version"),
        ({"table": None, "query": "select * from nowhere"}, "query: no such table: nowhere"),
        ({"url": "sqlite:///shop.db"}, "there is no file '.*shop.db'. Correct the path"),
        ({"url": "sqlite://"}, "there is no file"),
        ({"url": "${NOT_SET}"}, "variable 'NOT_SET' is not set"),
        ({"url": "nosuch://host/x"}, "SQLAlchemy knows no database 'nosuch'"),
        ({"url": "postgresql://host:port/x"}, "postgresql://host:port/x is no address"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            shop.source(**options).files(shop.home)
        assert "sqlalche.me" not in str(caught.value)
    shop.path.write_text("no database at all, but a text that is long enough to be one")
    with pytest.raises(SourceError, match="articles: file is not a database"):
        shop.source().files(shop.home)


def test_a_driver_that_is_not_installed_is_named(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match=r"needs the package .* Install it, or name another"):
        shop.source(url="mssql+pymssql://host/x").files(shop.home)
    monkeypatch.setitem(__import__("sys").modules, "pg8000", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[sql\]'"):
        shop.source(url="postgresql://host/x").files(shop.home)


def test_the_file_is_opened_to_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shop.source()
    assert isinstance(source, sql.Sql)
    with source._connect(shop.path) as connection, pytest.raises(Exception, match="readonly"):
        connection.exec_driver_sql("delete from articles")
    assert shop.stamp()[0] == 2


def test_a_writer_that_does_not_end_is_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_LOCK_SECONDS", 0.01)
    with closing(sqlite3.connect(shop.path, isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        with pytest.raises(SourceError, match="articles: database is locked"):
            shop.source().files(shop.home)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "postgresql://ann:geheim@h/x"}, "holds a password in clear"),
        ({"url": "postgresql://ann:${A}b@h/x"}, "holds a password in clear"),
        ({"url": "postgresql://ann:pa?ss@h/x"}, "holds a password in clear"),
        ({"url": "postgresql://h/x?user=a&password=geheim"}, "holds a password in clear"),
        ({"url": "data/shop.db"}, "is no address of a database"),
        ({"table": None, "query": "delete from articles"}, "must be one SELECT"),
        ({"table": None, "query": "select 1; delete from articles"}, "must be one SELECT"),
        ({"table": None, "query": "-- select\ndrop table articles"}, "must be one SELECT"),
        ({"table": None}, "name either a table or a query"),
        ({"query": "select 1"}, "name either a table or a query"),
        ({"path": "x"}, "Extra inputs"),
        ({"id": None}, "Field required"),
    ],
)
def test_wrong_options_are_refused(shop: Shop, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        shop.source(**options)


def test_good_addresses_are_taken(shop: Shop) -> None:
    for url in (
        "${DATABASE_URL}",
        "postgresql://ann:${A}@db:5432/x?sslmode=require",
        "postgresql://${USER}:${A}${B}@db/x",
        "mysql+pymysql://db/x",
        "sqlite:////abs/a:b@c.db",
    ):
        assert shop.source(url=url)
    for query in (
        "select ';delete'",
        "(select 1) union (select 2);",
        "WITH a AS (select 1) table a",
    ):
        assert shop.source(table=None, query=query)


@pytest.mark.parametrize("url", ["postgresql://ann:${SHOP_SECRET}@127.0.0.1:1/shop", "${SHOP_URL}"])
def test_no_message_holds_the_password(
    url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_SECRET", PASSWORD)
    monkeypatch.setenv("SHOP_URL", f"postgresql://ann:{quote(PASSWORD)}@127.0.0.1:1/shop")
    source = shop.source(url=url)
    with pytest.raises(SourceError, match=r"cannot connect to .*SHOP_") as caught:
        source.files(shop.home)
    assert caught.value.__cause__ is None
    assert isinstance(source, sql.Sql)
    said = source._words(ValueError(f"no {os.environ['SHOP_URL']}, and {PASSWORD} is wrong"))
    assert " is wrong" in said
    for words in (str(caught.value), said, repr(source), source.model_dump_json()):
        assert PASSWORD not in words
        assert quote(PASSWORD) not in words


def test_a_password_with_signs_of_an_address_is_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_SECRET", PASSWORD)
    source = shop.source(url="postgresql://ann:${SHOP_SECRET}@db:5/shop")
    assert isinstance(source, sql.Sql)
    address = source._address()
    assert (address.password, address.host, address.port) == (PASSWORD, "db", 5)


@pytest.fixture
def pipeline(home: Path) -> Shop:
    shop = Shop(home)
    write_pipeline(
        home,
        "shop",
        "source: {kind: sql, url: 'sqlite:///${SHOP_FOLDER}/shop.db', table: articles, id: id, "
        "text: [title, body], metadata: {price: float}, version: edited}\n"
        "model: 'hashing:'\npartitions: 2\nevaluation: {known_items: 0, embedded_again: 0}\n",
    )
    return shop


def test_a_pipeline_reads_again_when_the_table_has_changed(
    pipeline: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_FOLDER", "data")
    home = pipeline.home
    with run_of(home, "shop") as run:
        assert pending(run, run.spec.source.files(home)).new == ("articles",)
    reports, texts = run_recorded(home, "shop")
    assert len(texts) == 2
    with run_of(home, "shop") as run:
        assert pending(run, run.spec.source.files(home)).is_empty
    reports, texts = run_recorded(home, "shop")
    assert not report(reports, "documents").changed
    assert not texts
    pipeline.run(
        "update articles set body = 'seats six', edited = 2 where id = 2;"
        "insert into articles (id, title) values (3, 'Lamp'); delete from articles where id = 1;"
    )
    with run_of(home, "shop") as run:
        assert pending(run, run.spec.source.files(home)).changed == ("articles",)
    reports, texts = run_recorded(home, "shop")
    assert sorted(texts) == ["Lamp", "Oak table\nseats six"]
    assert {row["document_id"] for row in live_rows(home, "shop").values()} == {"2", "3"}


def test_an_address_is_stored_as_it_is_written(
    pipeline: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "data/../data/" + "./" * 9
    monkeypatch.setenv("SHOP_FOLDER", folder)
    run_recorded(pipeline.home, "shop")
    run_recorded(pipeline.home, "shop")  # reads the release of the first
    for path in (pipeline.home / "data" / "warehouse").rglob("*"):
        assert not path.is_file() or folder.encode() not in path.read_bytes(), path


def test_a_table_that_is_read_in_part_is_let_go(shop: Shop) -> None:
    shop.run("delete from articles")
    with closing(sqlite3.connect(shop.path)) as connection:
        rows = [(number, "long " * 100) for number in range(20_000)]
        connection.executemany("insert into articles (id, title) values (?, ?)", rows)
        connection.commit()
    source = shop.source()
    (part,) = source.files(shop.home)
    batches = source.read(part, ReadLog(print))
    assert next(batches).num_rows <= 8192
    batches.close()  # type: ignore[attr-defined]
    shop.run("delete from articles")  # no reader holds a lock
