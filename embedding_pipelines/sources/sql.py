"""SQL: the rows of a table, or of a query, of any database that SQLAlchemy has a driver for.

The one part of such a source is the table. Its stamp is the number of rows and the sum of their
digests: of all the columns that are read, or of `id` and `version` alone, if there is a column that
changes with each edit. So an insertion, an edit, a deletion and a transaction that commits late are
seen, in whatever order they come, and nothing is read while nothing has changed. PostgreSQL computes
the stamp itself; other databases hand over what it is made of.

Everything happens in a transaction that may only read. `${NAME}` in `url` is replaced when a
connection is opened, and never before, so that no file and no message holds a password.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from urllib.parse import quote

import pyarrow as pa
from pydantic import field_validator, model_validator

from embedding_pipelines.errors import SourceError, did_you_mean
from embedding_pipelines.extras import need
from embedding_pipelines.sources.as_json import as_json
from embedding_pipelines.sources.base import Input, ReadLog, Source, SourceFile
from embedding_pipelines.sources.columns import BATCH_BYTES, BATCH_ROWS
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.json_records import Problem, parse
from embedding_pipelines.variables import VARIABLE, expand, restore, unset

if TYPE_CHECKING:
    import sqlalchemy as sa

_FIRST_ROWS = 100  # fetched at once, before it is known how long rows are
_LOCK_SECONDS = 30.0  # to wait for a writer of an SQLite file
_MODULUS = 2**63
_SQLITE = b"SQLite format 3\0"  # how a file begins
_SHOWN_TABLES = 20
_SECRET_OPTION = re.compile(r"passw|pwd|token|secret", re.IGNORECASE)
# Strings, quoted names and comments: what of a query is not to be looked at for keywords.
_OPAQUE = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*.*?\*/", re.DOTALL)
_SELECT = re.compile(r"\s*\(*\s*(select|with|values|table)\b", re.IGNORECASE)
_PARTS = re.compile(r"([\w+]+://)?([^/?@]*@)?(.*)", re.DOTALL)  # scheme, user and password, rest
_READ_ONLY = "SET TRANSACTION READ ONLY"
_FIRST_STATEMENTS = {  # of a connection, by database
    "postgresql": (_READ_ONLY, "SET TIME ZONE 'UTC'", "SET datestyle TO ISO"),
    "mysql": (_READ_ONLY,),
    "mariadb": (_READ_ONLY,),
    "oracle": (_READ_ONLY,),
}
# PostgreSQL's types, and those of arrays of them, of which pg8000 shall hand on the text: it reads
# years before Christ as years after, and JSON's numbers as floats.
_DAYS, _JSON, _TIMES_OF_A_ZONE = (1082, 1114), (114, 3802), (1184,)
_ARRAYS = (1182, 1115, 1185, 199, 3807)


class Sql(Source):
    """One document per row of `table` or `query`; `source_row` is the row's number as it was read.

    url: as SQLAlchemy writes it, e.g. `postgresql://ann:${DB_PASSWORD}@db.example.org/shop` or
    `sqlite:///data/shop.db`, whose path starts at the home folder; table: with its schema, if it is
    not in the default one; version: a column that differs after each edit of a row.
    """

    kind: Literal["sql"] = "sql"
    unit: ClassVar[str] = "table"

    url: str
    table: str | None = None
    query: str | None = None
    id: str
    version: str | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if re.match(r"\$\{|[\w+]+://", url) is None:
            raise ValueError(
                "is no address of a database; write it as postgresql://user:${PASSWORD}@host/name, "
                "sqlite:///path/of/file.db or ${NAME_OF_A_VARIABLE}"
            )
        # As SQLAlchemy reads it: a password may hold a question mark.
        account = re.match(r"(?!sqlite)[\w+]+://[^:/@]*:([^@]*)@", url)
        password = account[1] if account else ""
        options = (url[account.end() :] if account else url).partition("?")[2]
        pairs = [pair.partition("=") for pair in options.split("&")]
        secrets = [password, *(value for key, _, value in pairs if _SECRET_OPTION.search(key))]
        if any(VARIABLE.sub("", secret) for secret in secrets):
            raise ValueError(
                "holds a password in clear; put it into an environment variable, and write "
                "${ITS_NAME} in its place"
            )
        return url

    @field_validator("query")
    @classmethod
    def _check_query(cls, query: str | None) -> str | None:
        if query is None:
            return None
        query = query.strip().rstrip(";").rstrip()
        plain = _OPAQUE.sub(lambda match: " " if match[0][0] in "-/" else "''", query)
        if not _SELECT.match(plain) or ";" in plain:
            raise ValueError("must be one SELECT; a source only reads")
        return query

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("name either a table or a query")
        return self

    @property
    def part(self) -> str:
        """The name of its one part."""
        return self.table or "query"

    @property
    def place(self) -> str:
        return f"{self.url}: {self.part}"

    def files(self, home: Path) -> list[Input]:
        """Its one part, with a stamp that is true of this moment; its path is the database's, if
        that is a file.

        Raises SourceError if the database cannot be reached, or lacks the table or a column, and
        ConfigError if the driver is not installed.
        """
        url, path = self._address(), Path()
        if url.get_backend_name() == "sqlite":
            path = home.absolute() / Path(url.database or "").expanduser()
        with self._connect(path) as connection:
            stamp = self._look(connection)
        return [SourceFile(self.part, 0, stamp, path)]

    def omissions(self, home: Path) -> list[str]:
        if self.version is not None:
            return []
        return [
            f"{self.part}: source.version is not set, so each look for changes goes through all "
            "columns of all rows"
        ]

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read."""
        import sqlalchemy as sa

        with self._connect(file.path) as connection:
            names = self._roots(self._names(connection))
            nested = {path.partition(".")[0] for path in self.columns if path not in names}
            fields = Fields(self, file, log, lambda row: _shown(names, row))
            columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in names]
            for number, row in enumerate(self._rows(connection, columns), start=1):
                record = _record(names, row, nested)
                size = sum(len(value) for value in row if isinstance(value, str | bytes))
                yield from fields.add(number, record, row, size)
            yield from fields.finish()

    def _look(self, connection: "sa.Connection") -> tuple[int, int]:
        """The number of rows, and the sum of the digests of what tells whether they changed."""
        import sqlalchemy as sa

        names = self._names(connection)
        watched = self._roots(names)
        if self.version is not None:
            if self.version not in names:
                raise self._version_error(names)
            watched = [self.id, self.version]
        columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in watched]
        if connection.dialect.name == "postgresql":
            # No parameters: pg8000 would take a % in the query for one.
            seed: sa.ColumnClause[Any] = sa.literal_column("0")
            digests = sa.func.hashtextextended(sa.cast(sa.func.row(*columns), sa.Text), seed)
            statement = sa.select(sa.func.count(), sa.func.sum(digests)).select_from(self._from())
            count, total = connection.execute(statement).one()
            return int(count), int(total or 0) % _MODULUS
        count = total = 0
        for row in self._rows(connection, columns):
            count += 1
            words = repr([bytes(part) if isinstance(part, memoryview) else part for part in row])
            data = words.encode("utf-8", "surrogatepass")
            total += int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        return count, total % _MODULUS

    def _rows(
        self, connection: "sa.Connection", columns: "list[sa.ColumnClause[Any]]"
    ) -> Iterator[tuple[Any, ...]]:
        """All rows of some columns; about BATCH_BYTES of them are in memory."""
        import sqlalchemy as sa

        statement = sa.select(*columns).select_from(self._from())
        streaming = connection.execution_options(stream_results=True, max_row_buffer=1)
        result, limit = streaming.execute(statement), _FIRST_ROWS
        while True:
            try:
                rows = result.fetchmany(limit)
            except (ValueError, OverflowError) as error:  # such as a day before Christ
                raise SourceError(
                    f"{self.part}: the driver cannot read a value ({self._words(error)}). Cast it "
                    "to text in source.query."
                ) from None
            if not rows:
                return
            yield from map(tuple, rows)
            size = sum(len(part) for row in rows for part in row if isinstance(part, str | bytes))
            limit = max(1, min(BATCH_ROWS, BATCH_BYTES * len(rows) // (size + 64 * len(rows))))

    def _names(self, connection: "sa.Connection") -> list[str]:
        """The columns that the table or query has. Raises SourceError if there is no such table."""
        import sqlalchemy as sa

        every: sa.TextClause = sa.text("*")
        statement = sa.select(every).select_from(self._from()).where(sa.text("1 = 0"))
        try:
            names = list(connection.execute(statement).keys())
        except sa.exc.DBAPIError as error:
            connection.rollback()
            problem = self._absence(connection) or self._words(error)
            raise SourceError(f"{self.part}: {problem}") from None
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise SourceError(
                f"{self.part}: {names.count(doubled[0])} columns are named {doubled[0]!r}. Name "
                "them apart in source.query, with AS."
            )
        return names

    def _roots(self, names: list[str]) -> list[str]:
        """The columns to read: `a` for the path `a.b`, unless the column itself has that name.
        Raises SourceError if one is missing."""
        roots: dict[str, None] = {}
        for path in self.columns:
            root = path if path in names else path.partition(".")[0]
            if root not in names:
                raise self.missing_column_error(self.part, path, names)
            roots[root] = None
        return list(roots)

    def _version_error(self, names: list[str]) -> SourceError:
        return SourceError(
            f"{self.part}: column {self.version!r} is missing; found "
            f"{', '.join(map(repr, names))}.{did_you_mean(self.version or '', names)} Set "
            "source.version to one of them, or leave it out."
        )

    def _from(self) -> "sa.FromClause":
        import sqlalchemy as sa

        if self.query is not None:
            query = self.query.replace(":", r"\:")  # which would begin a parameter
            return sa.text(f"({query}\n) rows_of_query")  # type: ignore[return-value]
        schema, _, name = (self.table or "").rpartition(".")
        return sa.table(name, schema=schema or None)

    def _absence(self, connection: "sa.Connection") -> str:
        """That the table is not there, and which are; nothing if it is, or nobody can tell."""
        import sqlalchemy as sa

        if self.table is None:
            return ""
        schema, _, name = self.table.rpartition(".")
        try:
            inspector = sa.inspect(connection)
            tables = inspector.get_table_names(schema or None)
            tables += inspector.get_view_names(schema or None)
        except (sa.exc.SQLAlchemyError, NotImplementedError):
            return ""
        if name in tables:
            return ""
        shown = ", ".join(map(repr, sorted(tables)[:_SHOWN_TABLES]))
        more = ", …" if len(tables) > _SHOWN_TABLES else ""
        where = f"schema {schema!r}" if schema else "database"
        remedy = "Set source.table to one of them." if shown else "Correct source.table."
        return (
            f"there is no such table; the {where} has {shown + more if shown else 'none'}."
            f"{did_you_mean(name, tables)} {remedy}"
        )

    @contextlib.contextmanager
    def _connect(self, path: Path) -> "Iterator[sa.Connection]":
        """A connection that can only read. SourceError for whatever the database answers."""
        import sqlalchemy as sa

        engine = self._engine(path)
        try:
            try:
                connection = engine.connect()
            # Of drivers, about an option that is none.
            except (sa.exc.SQLAlchemyError, OSError, ValueError, TypeError) as error:
                raise SourceError(
                    f"source.url: cannot connect to {self.url}: {self._words(error)}. Correct the "
                    "address, or see that the database is up and lets this user in."
                ) from None
            with connection:
                for statement in _FIRST_STATEMENTS.get(engine.dialect.name, ()):
                    connection.exec_driver_sql(statement)
                yield connection
        except sa.exc.DBAPIError as error:
            raise SourceError(f"{self.part}: the database says: {self._words(error)}.") from None
        finally:
            engine.dispose()

    def _engine(self, path: Path) -> "sa.Engine":
        import sqlalchemy as sa

        url = self._address()
        if url.get_backend_name() == "sqlite":
            if not path.is_file():
                raise SourceError(f"source.url: there is no file {str(path)!r}. Correct the path.")
            creator = functools.partial(_open_file, path)
            return sa.create_engine("sqlite://", creator=creator, poolclass=sa.NullPool)
        options: dict[str, Any] = {}
        if url.drivername in ("postgresql", "postgres", "postgresql+pg8000"):
            need("pg8000", "sql")
            url, options = _for_pg8000(url)
        try:
            engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=options)
            if engine.dialect.driver == "pg8000":
                sa.event.listen(engine, "connect", _keep_texts)
            return engine
        except sa.exc.NoSuchModuleError:
            raise SourceError(
                f"source.url: SQLAlchemy knows no database {url.drivername!r}. Correct the name, or "
                "install the package that adds it."
            ) from None
        except ImportError as error:
            raise SourceError(
                f"source.url: {url.drivername} needs the package {error.name}. Install it, or name "
                "another driver in the address, as in mysql+pymysql://."
            ) from None

    def _address(self) -> "sa.URL":
        """The address with the values of its variables. Raises SourceError."""
        import sqlalchemy as sa

        for name in unset(self.url):
            raise SourceError(f"source.url: the environment variable {name!r} is not set. Set it.")
        scheme, account, rest = _PARTS.fullmatch(self.url).groups("")  # type: ignore[union-attr]
        # A password may hold what would end it in an address.
        account = VARIABLE.sub(lambda match: quote(os.environ[match[1]], safe=""), account)
        try:
            return sa.make_url(f"{scheme}{account}{expand(rest)}")
        except (sa.exc.ArgumentError, ValueError):
            raise SourceError(
                f"source.url: {self.url} is no address of a database. Write it as "
                "postgresql://user:${PASSWORD}@host/name."
            ) from None

    def _words(self, error: Exception) -> str:
        """What a database or its driver says, without what variables stand for."""
        answer = getattr(error, "orig", None) or error
        words = str(answer)
        if answer.args and isinstance(answer.args[0], dict):  # pg8000: the fields of an answer
            words = str(answer.args[0].get("M", words))
        written = {os.environ[name]: f"${{{name}}}" for name in VARIABLE.findall(self.url)}
        password = self._address().password or ""  # of an address that is a variable as a whole
        for form in (password, quote(password), quote(password, safe="")):
            written.setdefault(form, "…")
        return " ".join(restore(words, written).split()).rstrip(".")


def is_database(path: Path) -> bool:
    """Whether there is an SQLite file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def tables_of(path: Path) -> list[str]:
    """The tables of an SQLite file, by name. Raises SourceError."""
    query = "select name from sqlite_master where type = 'table' and name not like 'sqlite^_%' escape '^'"
    try:
        with contextlib.closing(_open_file(path)) as connection:
            return sorted(name for (name,) in connection.execute(query))
    except sqlite3.Error as error:
        raise SourceError(
            f"{path}: cannot be read ({error}). Put a whole copy in its place."
        ) from error


def _open_file(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=_LOCK_SECONDS, check_same_thread=False)
    # A text that is no UTF-8 rejects its row, not the table.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _for_pg8000(url: "sa.URL") -> "tuple[sa.URL, dict[str, Any]]":
    """The address for the driver pg8000, and what libpq's `sslmode` in it means there."""
    import ssl

    url = url.set(drivername="postgresql+pg8000")
    mode, root = (url.query.get(name) for name in ("sslmode", "sslrootcert"))
    url = url.difference_update_query(["sslmode", "sslrootcert"])
    if mode in ("verify-ca", "verify-full"):
        context = ssl.create_default_context(cafile=str(root) if root else None)
        context.check_hostname = mode == "verify-full"
        return url, {"ssl_context": context}
    return url, {"ssl_context": {"require": True, "disable": False}.get(str(mode))}


def _keep_texts(connection: Any, _: object) -> None:
    """See _DAYS and what follows it."""
    texts = need("pg8000.converters", "sql").string_array_in
    for kind in (*_DAYS, *_JSON):
        connection.register_in_adapter(kind, str)
    for kind in _ARRAYS:
        connection.register_in_adapter(kind, texts)
    for kind in _TIMES_OF_A_ZONE:
        connection.register_in_adapter(kind, lambda text: re.sub(r"\+00$", "Z", text))


def _record(names: list[str], row: tuple[Any, ...], nested: set[str]) -> Any:
    """A row as a JSON object, or the Problem that makes it none. Of `nested` columns fields are
    read, and they may hold JSON as text."""
    record = {}
    for name, value in zip(names, row, strict=True):
        if name in nested and isinstance(value, str):
            parsed = parse(value)
            value = value if isinstance(parsed, Problem) else parsed
        elif name not in nested and isinstance(value, dict):  # JSON is text, if it is a column
            value = json.dumps(value, ensure_ascii=False, default=str)
        try:
            record[name] = value if type(value) is str and value.isascii() else as_json(value)
        except ValueError as error:
            return Problem(f"column {name!r} {error}")
        except TypeError as error:
            return Problem(f"column {name!r} {error}; cast it to text in source.query")
    return record


def _shown(names: list[str], row: tuple[Any, ...]) -> bytes:
    words = json.dumps(dict(zip(names, row, strict=True)), default=_text, ensure_ascii=False)
    return words.encode("utf-8", "backslashreplace")


def _text(value: Any) -> str:
    is_bytes = isinstance(value, bytes | bytearray | memoryview)
    return bytes(value).decode("utf-8", "backslashreplace") if is_bytes else str(value)
