"""Guesses a pipeline file from source files: which column is the id, which are text, and what the
others hold. A person corrects it; `validate` says what is wrong."""

import contextlib
import itertools
import json
import keyword
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, cast

import yaml

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.plugins import choices
from embedding_pipelines.schemas import RESERVED
from embedding_pipelines.sources.base import ReadLog, Rejection, Source, SourceFile, column_name
from embedding_pipelines.sources.paths import find
from embedding_pipelines.sources.text import MAX_RECORD_BYTES
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.spec.pipeline import NOT_IN_DAGSTER

SAMPLE_ROWS = 500
NO_COLUMN = "\0"  # a name that no file has
DELIMITERS = ";\t|"
ID_NAMES = ("id", "_id", "uuid", "guid", "key", "sku", "isbn", "doi", "slug", "url", "name")
TITLE_NAMES = ("title", "name", "headline", "subject", "question", "label")
TEXT_NAMES = (
    *TITLE_NAMES,
    *("text", "body", "content", "description", "abstract", "summary", "answer", "message"),
    *("comment", "comments", "review", "notes", "details"),
)
WORDS_OF_TEXT = 3.0  # a column with so many words on average is text
MAX_ID_LETTERS = 128
MAX_METADATA_LETTERS = 200
MAX_METADATA = 30

INT = re.compile(r"-?(0|[1-9]\d{0,17})")  # not 01234, which is a code
FLOAT = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Guess:
    """What a sample says of a source. `options` are those of its kind, e.g. a delimiter."""

    kind: str
    path: list[str]
    options: dict[str, Any]
    rows: int  # of the sample
    id: str | None
    text: list[str]
    metadata: dict[str, str]

    def pipeline(self, model: str) -> str:
        """The pipeline file, as YAML."""
        path = self.path[0] if len(self.path) == 1 else self.path
        source: dict[str, Any] = {"kind": self.kind, "path": path, **self.options}
        if self.id:
            source["id"] = self.id
        source |= {"text": self.text}
        if self.metadata:
            source["metadata"] = self.metadata
        content = {"source": source, "model": model}
        body = yaml.safe_dump(
            content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
        )
        return (
            f"# Guessed from {self.rows:,} row{'s' * (self.rows != 1)}. Change what is wrong; README "
            "explains the options.\n"
            f"{body}"
        )


def guess(home: Path, files: Sequence[str]) -> Guess:
    """What the first rows of `files` say; each is a file, a folder or a glob, of one format.

    Raises SourceError if one matches nothing or cannot be read, ConfigError for files of several
    formats, and if no column holds text.
    """
    sources = cast(dict[str, type[Source]], choices("sources", Source))
    kinds = {
        kind: source
        for kind, source in sources.items()
        if any(_matches(entry, home, source) for entry in files)
    }
    if len(kinds) != 1:
        several = f"of several formats: {', '.join(kinds)}"
        if not kinds:
            exist = all((Path.cwd() / Path(entry).expanduser()).exists() for entry in files)
            several = "no file of a format that is read" if exist else "there is no such file"
        suffixes = {suffix for source in sources.values() for suffix in source.suffixes}
        plain = ", ".join(sorted(suffix for suffix in suffixes if suffix.count(".") == 1))
        raise ConfigError(
            f"{', '.join(files)}: {several}. Name files, folders or globs of one format ({plain}, "
            "also compressed)."
        )
    ((kind, source_class),) = kinds.items()
    paths = [_relative(entry, home) for entry in files]
    source = source_class(kind=kind, path=tuple(paths), text=(NO_COLUMN,))
    first = max(source.files(home), key=lambda file: file.size_bytes > 0)
    source, names = _columns(source, first)
    values = {name: _values(source, name, first) for name in dict.fromkeys(names) if name}
    values = {name: texts for name, texts in values.items() if any(texts)}
    rows = max(map(len, values.values()), default=0)
    if not rows:
        raise ConfigError(
            f"{first.name} has no rows to guess from{_first_problem(source, names, first)}. Write "
            "the pipeline file."
        )
    options = source.model_dump(
        mode="json", exclude_defaults=True, exclude={"kind", "path", "text", "id", "metadata"}
    )
    key = _id_of(values)
    text = _text_of(values, key)
    others = [name for name in values if name not in (key, *text)]
    metadata: dict[str, str] = {}
    rejected = _rejections(source, text, metadata, first)
    for name in others:
        taken = {column_name(other) for other in metadata}
        too_long = max(map(len, values[name])) > MAX_METADATA_LETTERS
        if column_name(name) not in RESERVED | taken and not too_long:
            for column_type in (_type_of(values[name]), "list[string]"):
                if _rejections(source, text, {name: column_type}, first) <= rejected:
                    metadata[name] = column_type
                    break
    metadata = dict(itertools.islice(metadata.items(), MAX_METADATA))
    return Guess(kind, paths, options, rows, key, text, metadata)


def name_of(files: Sequence[str]) -> str:
    """A pipeline's name, of the first file's or folder's."""
    stem = Path(re.sub(r"[*?\[].*", "", files[0]) or files[0]).name.split(".")[0]
    stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    name = name if name[:1].isalpha() else f"pipeline_{name}"
    name = name[:60].strip("_")
    return f"my_{name}" if keyword.iskeyword(name) or name in NOT_IN_DAGSTER else name


def write_guess(home: Path, path: Path, guessed: Guess, model: str) -> None:
    """Write a new pipeline file. Raises ConfigError if there is one, or for a wrong model."""
    text = guessed.pipeline(model)
    parse_pipeline(text, path.stem, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists. Choose another --name, or delete the file.") from None


def _matches(entry: str, home: Path, source: type[Source]) -> bool:
    try:
        files = find([_relative(entry, home)], home, source.suffixes)
    except SourceError:
        return False
    return any(file.name.lower().endswith(source.suffixes) for file in files)


def _relative(entry: str, home: Path) -> str:
    """An entry as a pipeline file names it; a shell's own folder may be another than the home."""
    path = Path.cwd() / Path(entry).expanduser()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


def _columns(source: Source, file: SourceFile) -> tuple[Source, list[str]]:
    """The names of a file's columns, and the source with the options that it takes to see them."""
    names = _names(source, file)
    if len(names) == 1 and "delimiter" in type(source).model_fields:
        for delimiter in DELIMITERS:
            if delimiter in names[0]:
                source = _with(source, delimiter=delimiter)
                return source, _names(source, file)
    if "records" in type(source).model_fields and (records := _records_of(file)):
        source = _with(source, records=records)
        names = _names(source, file)
    return source, names


def _with(source: Source, **options: Any) -> Source:
    return type(source).model_validate(source.model_dump() | options)


def _names(source: Source, file: SourceFile) -> list[str]:
    """The columns of the first rows; none if there is no table."""
    try:
        for _ in source.read(file, ReadLog(reject=lambda _: None)):
            pass  # in nested formats any record may be the first with a field
    except SourceError as error:
        if not error.columns:
            raise
        return list(error.columns)
    return []


def _records_of(file: SourceFile) -> str | None:
    """The path to the longest array of objects in a file that is one JSON object, else None."""
    if file.size_bytes > MAX_RECORD_BYTES or not file.path.name.endswith(".json"):
        return None
    try:
        value = json.loads(file.path.read_bytes())
    except (ValueError, RecursionError):  # reading it says what is wrong
        return None
    arrays: dict[str, int] = {}
    waiting = [("", value)] if isinstance(value, dict) else []
    while waiting:
        at, item = waiting.pop()
        if isinstance(item, dict):
            waiting += [(f"{at}.{key}" if at else key, part) for key, part in item.items()]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            arrays[at] = len(item)
    return max(arrays, key=arrays.__getitem__, default=None)


def _values(source: Source, name: str, file: SourceFile) -> list[str]:
    """The first values of a column, as texts."""
    log, texts = ReadLog(reject=lambda _: None), list[str]()
    try:
        for batch in _with(source, text=(name,)).read(file, log):
            texts += [text or "" for text in batch["text"].to_pylist()]
            if len(texts) >= SAMPLE_ROWS:
                break
    except SourceError:  # the column holds no values that are texts
        return []
    return texts[:SAMPLE_ROWS]


def _first_problem(source: Source, names: list[str], file: SourceFile) -> str:
    """Why the first record is none, after a colon; nothing if there is no record."""
    rejections: list[Rejection] = []
    configured = _with(source, text=tuple(names[:1]) or (NO_COLUMN,))
    with contextlib.suppress(SourceError):
        for _ in configured.read(file, ReadLog(reject=rejections.append)):
            pass
    return f": {rejections[0].reason}" if rejections else ""


def _rejections(source: Source, text: list[str], metadata: dict[str, str], file: SourceFile) -> int:
    """How many of the first rows cannot be documents with these columns."""
    rejections: list[Rejection] = []
    configured = _with(source, text=tuple(text), metadata=metadata)
    try:
        next(iter(configured.read(file, ReadLog(reject=rejections.append))), None)
    except SourceError:
        return SAMPLE_ROWS
    return sum(rejection.row <= SAMPLE_ROWS for rejection in rejections)


def _id_of(values: dict[str, list[str]]) -> str | None:
    """A column whose values are short, there and all different; the first by name, then by place."""

    def identifies(name: str) -> bool:
        texts = values[name]
        return (
            all(texts) and len(set(texts)) == len(texts) and max(map(len, texts)) <= MAX_ID_LETTERS
        )

    by_name = {name.lower(): name for name in reversed(values)}
    likely = [by_name[name] for name in ID_NAMES if name in by_name]
    likely += [name for name in values if re.search(r"(_|\b)(id|key|code)$", name.lower())]
    likely += [
        name
        for place, name in enumerate(values)
        if not any(" " in text for text in values[name])
        and (_type_of(values[name]) == "string" or (place == 0 and _type_of(values[name]) == "int"))
    ]
    return next((name for name in likely if identifies(name)), None)


def _text_of(values: dict[str, list[str]], key: str | None) -> list[str]:
    """The columns that a reader would read, titles first."""
    types = {name: _type_of(texts) for name, texts in values.items() if name != key}
    words = {name: _words(values[name]) for name, kind in types.items() if kind == "string"}
    text = [name for name in words if words[name] >= WORDS_OF_TEXT or name.lower() in TEXT_NAMES]
    if not text and words:
        text = [max(words, key=words.__getitem__)]
    if not text and key is not None and _type_of(values[key]) == "string":
        text = [key]
    if not text:
        raise ConfigError(
            f"None of the columns {', '.join(map(repr, values))} holds text. Write the pipeline file."
        )
    return sorted(text, key=lambda name: name.lower() not in TITLE_NAMES)


def _words(texts: list[str]) -> float:
    """On average, of those that are not empty."""
    filled = [text for text in texts if text]
    return sum(len(text.split()) for text in filled) / len(filled)


def _type_of(texts: Sequence[str]) -> str:
    """A type of metadata that takes all values."""
    filled = [text.strip() for text in texts if text.strip()]
    for kind, fits in (
        ("int", INT.fullmatch),
        ("float", FLOAT.fullmatch),
        ("bool", lambda text: text.lower() in ("true", "false")),
        ("date", lambda text: len(text) == len("2026-01-31") and _is_time(date, text)),
        ("timestamp", lambda text: ":" in text and _is_time(datetime, text)),
    ):
        if filled and all(map(fits, filled)):
            return kind
    return "string"


def _is_time(kind: type[date], text: str) -> bool:
    try:
        kind.fromisoformat(text)
    except ValueError:
        return False
    return True
