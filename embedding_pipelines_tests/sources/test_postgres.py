"""A source in PostgreSQL: a real server on loopback."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import Source
from embedding_pipelines_tests.contracts_sources import check_source
from embedding_pipelines_tests.postgres import PASSWORD, Server, serve
from embedding_pipelines_tests.sources.test_sql import make

pytestmark = pytest.mark.slow

TABLE = """
create table articles (
    id bigserial primary key, title text, price numeric(8, 2), day date, at timestamp, tz timestamptz,
    key uuid, extra jsonb, tags text[], raw bytea, ok boolean, x double precision, span interval,
    address inet, edited timestamptz default now()
)"""
FIRST = """
insert into articles (title, price, day, at, tz, key, extra, tags, raw, ok, x, address) values
    ('naïve', 1.10, '2024-01-31', '2024-01-31 10:00:00.5', '2024-01-31 10:00:00+02',
     'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"maker": {"no": 1.50}}', '{x,NULL,"y z"}', 'abc', true,
     'NaN', '10.0.0.1')"""
KINDS = {
    "price": "string", "day": "date", "at": "timestamp", "tz": "timestamp", "key": "string",
    "extra.maker.no": "string", "tags": "list[string]", "raw": "string",
    "ok": "bool", "x": "float", "address": "string",
}  # fmt: skip


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("SHOP_SECRET", PASSWORD)
    running.run("drop schema if exists public cascade; create schema public")
    running.run(TABLE)
    return running


def source(server: Server, **options: Any) -> Source:
    return make({"url": server.url, "table": "articles", "text": "title", **options})


def stamp(server: Server, **options: Any) -> tuple[int, ...]:
    (part,) = source(server, **options).files(Path("/nowhere"))
    return part.stamp


def test_values_of_all_types_are_read_as_they_are(server: Server) -> None:
    server.run(FIRST)
    ((document,), _) = check_source(source(server, metadata=KINDS), Path("/nowhere"), 1)
    utc = datetime.UTC
    assert document == {
        "document_id": "1",
        "text": "naïve",
        "source_file": "articles",
        "source_row": 1,
        "price": "1.10",
        "day": datetime.date(2024, 1, 31),
        "at": datetime.datetime(2024, 1, 31, 10, 0, 0, 500_000, tzinfo=utc),
        "tz": datetime.datetime(2024, 1, 31, 8, tzinfo=utc),
        "key": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "extra_maker_no": "1.50",
        "tags": ["x", None, "y z"],
        "raw": "abc",
        "ok": True,
        "x": None,
        "address": "10.0.0.1",
    }
    ((document,), _) = check_source(
        source(server, metadata={"tz": "string", "price": "float", "extra": "string"}),
        Path("/nowhere"),
        1,
    )
    assert document["extra"] == '{"maker": {"no": 1.50}}'
    assert (document["tz"], document["price"]) == ("2024-01-31 08:00:00Z", 1.1)


@pytest.mark.parametrize(
    ("column", "kind", "value", "reason"),
    [
        ("day", "date", "0044-03-15 BC", "'0044-03-15 BC', not date"),
        ("at", "timestamp", "0044-03-15 BC", "'0044-03-15 00:00:00 BC', not timestamp"),
        ("tz", "timestamp", "infinity", "'infinity', not timestamp"),
        ("tz", "timestamp", "20000-01-01", "'20000-01-01 00:00:00Z', not timestamp"),
        ("raw", "string", r"\xff00", "is binary data, not text"),
        (
            "span",
            "string",
            "1 day",
            "is timedelta, not text or a number; cast it to text in source",
        ),
        ("price", "int", "1.5", "'1.50', not int"),
    ],
)
def test_what_no_column_holds_is_rejected(
    server: Server, column: str, kind: str, value: str, reason: str
) -> None:
    server.run(f"insert into articles (title, {column}) values ('a', '{value}')")
    chosen = source(server, metadata={column: kind}, max_rejected=1)
    _, (rejection,) = check_source(chosen, Path("/nowhere"), 0, 1)
    assert reason in rejection.reason


@pytest.mark.parametrize("version", [None, "edited"])
def test_the_server_sees_every_edit(server: Server, version: str | None) -> None:
    server.run("insert into articles (title) select 'row ' || g from generate_series(1, 1000) g")
    stamps = [stamp(server, version=version)]
    assert stamps[0] == stamp(server, version=version)
    for edit in (
        "update articles set title = 'new', edited = edited + interval '1 s' where id = 7",
        "update articles set title = 'old', edited = '1999-01-01' where id = 8",
        "delete from articles where id = 9; insert into articles (title) values ('in its place')",
        "delete from articles where id = 10",
    ):
        server.run(edit)
        stamps.append(stamp(server, version=version))
    assert len(set(stamps)) == 5
    server.run("update articles set title = 'unsaid' where id = 11")
    assert (stamp(server, version=version) == stamps[-1]) is (version is not None)


def test_a_stamp_does_not_depend_on_how_the_server_writes_times(server: Server) -> None:
    server.run(FIRST)
    before = stamp(server, metadata=KINDS)
    server.run(
        "alter role owner set datestyle to German; alter role owner set time zone 'Asia/Tokyo'"
    )
    try:
        assert stamp(server, metadata=KINDS) == before
    finally:
        server.run("alter role owner reset all")


def test_nothing_can_be_written(server: Server) -> None:
    server.run(FIRST)
    server.run(
        "create function erase() returns bigint as $$ delete from articles returning id $$ language sql"
    )
    query = "select erase() as id, 'x' as title"
    with pytest.raises(
        SourceError, match="the database says: cannot execute DELETE in a read-only"
    ):
        source(server, table=None, query=query).files(Path("/nowhere"))
    query = "with gone as (delete from articles returning *) select * from gone"
    with pytest.raises(SourceError, match="query: "):
        source(server, table=None, query=query).files(Path("/nowhere"))
    assert server.run("select count(*) from articles") == [[1]]


def test_what_is_wrong_is_said_without_the_password(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url
    for options, words in (
        ({"table": "artikles"}, r"no such table; the database has 'articles'. Did you mean"),
        ({"table": "other.articles"}, "the schema 'other' has none. Correct source.table"),
        ({"text": "titel"}, "column 'titel' is missing; .* Did you mean 'title'"),
        ({"table": None, "query": "select id, 1/0 as title from articles"}, ": division by zero"),
        (
            {"table": None, "query": "select id, titel from articles"},
            'column "titel" does not exist',
        ),
        (
            {"table": None, "query": "select id, title, title from articles"},
            "query: 2 columns are named 'title'. Name them apart",
        ),
        ({"url": f"{url}?sslmode=require"}, "Server refuses SSL"),
        ({"url": f"{url}?nonsense=1"}, "unexpected keyword argument 'nonsense'"),
        ({"url": url.replace("/postgres", "/other")}, 'database "other" does not exist'),
    ):
        server.run(FIRST)
        with pytest.raises(SourceError, match=words) as caught:
            source(server, **options).files(Path("/nowhere"))
        assert PASSWORD not in str(caught.value)
    assert stamp(server, url=f"{url}?sslmode=disable")
    monkeypatch.setenv("SHOP_SECRET", "not the one")
    with pytest.raises(
        SourceError, match=r"cannot connect to .*SHOP_SECRET.*authentication failed"
    ):
        source(server).files(Path("/nowhere"))


def test_views_schemas_and_odd_names_are_read(server: Server) -> None:
    server.run('create schema "Shop"; create table "Shop"."Order" ("Id" int, "select" text)')
    server.run("""insert into "Shop"."Order" values (1, 'a :b %s')""")
    chosen = source(server, table="Shop.Order", id="Id", text="select")
    ((document,), _) = check_source(chosen, Path("/nowhere"), 1)
    assert document["text"] == "a :b %s"
    query = """select id::text as id, title from articles where title like '%a%' and id % 2 = 1"""
    server.run(FIRST)
    check_source(source(server, table=None, query=query), Path("/nowhere"), 1)
