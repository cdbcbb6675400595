"""Guesses a pipeline file from source files: which column is the id, which are text, and what the
others hold. A person corrects it; `validate` says what is wrong."""

import contextlib
import itertools
import json
import keyword
import os
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, cast

import yaml

from embedding_pipelines.errors import (
    ConfigError,
    EmbeddingPipelinesError,
    SourceError,
    counted,
)
from embedding_pipelines.objects import is_uri
from embedding_pipelines.plugins import choices
from embedding_pipelines.schemas import RESERVED
from embedding_pipelines.sources.base import (
    FileSource,
    Input,
    ReadLog,
    Rejection,
    Source,
    SourceFile,
    column_name,
    fetched,
)
from embedding_pipelines.sources.images import OWN, TABLES, plain_path
from embedding_pipelines.sources.paths import NoMatchError, find
from embedding_pipelines.sources.sql import Sql, is_database, tables_of
from embedding_pipelines.sources.text import MAX_RECORD_BYTES
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.spec.pipeline import NOT_IN_DAGSTER

DEFAULT_OF_TEXTS = "minilm"
IMAGES, DEFAULT_OF_IMAGES = "images", {"provider": "clip", "model": "openai/clip-vit-base-patch32"}
SAMPLE_ROWS = 500
NO_COLUMN = "\0"  # a name that no file has
DELIMITERS = ";\t|"
BY_HAND = "Or write a file in pipelines/ by hand; docs/pipeline-file.md explains it."
SURE_ID_NAMES = ("id", "_id", "uuid", "guid", "sku", "isbn", "doi")
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
HALF = 0.5  # so many of a column's values have to name an image
NEARLY_ALL = 0.95  # so many values of a type make a column of it, though the others are rejected
SHOWN = 3  # examples in a note

INT = re.compile(r"-?(0|[1-9]\d{0,17})")  # not 01234, which is a code
FLOAT = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Guess:
    """What a sample says of a source. `options` are those of its kind, e.g. a delimiter."""

    kind: str
    path: list[str]
    options: dict[str, Any]
    rows: int  # of the sample; of images, all
    id: str | None
    text: list[str]
    metadata: dict[str, str]
    notes: list[str] = field(default_factory=list)
    """Sentences: what a person has to know or to decide."""

    @property
    def unit(self) -> str:
        """What was counted."""
        return "image" if self.kind == IMAGES else "row"

    def pipeline(self, model: str | None = None) -> str:
        """The pipeline file, as YAML; with a model of the project's choice if none is named."""
        path = self.path[0] if len(self.path) == 1 else self.path
        place = {"path": path} if self.path else {}
        source: dict[str, Any] = {"kind": self.kind, **place, **self.options}
        if self.id:
            source["id"] = self.id
        if self.text:
            source["text"] = self.text
        if self.metadata:
            source["metadata"] = self.metadata
        usual = DEFAULT_OF_IMAGES if self.kind == IMAGES else DEFAULT_OF_TEXTS
        content = {"source": source, "model": model or usual}
        body = yaml.safe_dump(
            content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
        )
        first = (
            f"Guessed from {counted(self.rows, self.unit)}. Change what is wrong; "
            "docs/pipeline-file.md explains the options."
        )
        comments = [line for note in (first, *self.notes) for line in textwrap.wrap(note, 98)]
        return "".join(f"# {line}\n" for line in comments) + body


def guess(home: Path, files: Sequence[str]) -> Guess:
    """What the first rows of `files` say; each is a file, a folder or a glob, of one format.

    Raises SourceError if one cannot be read, ConfigError for files of several formats or of none
    that is read, and if no column holds text.
    """
    if len(files) == 1 and is_database(home / _relative(files[0], home)):
        return _guess_table(home, _relative(files[0], home))
    all_sources = cast(dict[str, type[Source]], choices("sources", Source))
    sources = {kind: cls for kind, cls in all_sources.items() if issubclass(cls, FileSource)}
    suffixes = sorted({suffix for source in sources.values() for suffix in source.suffixes})
    paths = [_relative(entry, home) for entry in files]
    inputs = _found(paths, home, tuple(suffixes))
    kinds = {
        kind: source
        for kind, source in sources.items()
        if any(file.name.lower().endswith(source.suffixes) for file in inputs)
    }
    if IMAGES in kinds:
        captions = _captions(
            home, inputs, [*inputs, *_tables_beside(home, paths, sources)], sources
        )
        if captions is not None or len(kinds) == 1:
            return _guess_images(home, paths, sources[IMAGES], captions)
        del kinds[IMAGES]  # pictures beside texts
    if len(kinds) != 1:
        several = f"of several formats: {', '.join(kinds)}"
        if not kinds:
            exist = inputs or all((home / path).exists() for path in paths)
            several = "no file of a format that is read" if exist else "there is no such file"
        plain = ", ".join(suffix for suffix in suffixes if suffix.count(".") == 1)
        raise ConfigError(
            f"{', '.join(files)}: {several}. Name files, folders or globs of one format ({plain}, "
            "also compressed)."
        )
    ((kind, source_class),) = kinds.items()
    source = source_class(kind=kind, path=tuple(paths), text=(NO_COLUMN,))
    first = max(source.files(home), key=lambda file: file.size_bytes > 0)
    with fetched([first]) as local:
        return _guess(source, paths, next(local))


def _guess_images(
    home: Path, paths: list[str], images: type[Source], captions: dict[str, Any] | None
) -> Guess:
    options = {"captions": captions} if captions else {}
    source = images.model_validate({"kind": IMAGES, "path": paths, **options})
    count, notes = len(source.files(home)), source.omissions(home)
    return Guess(IMAGES, paths, options, count, None, [], {}, notes)


def _tables_beside(
    home: Path, paths: Sequence[str], sources: dict[str, type[FileSource]]
) -> list[Input]:
    """The tables that lie beside folders of this machine, or beside its files."""
    suffixes = tuple(suffix for kind in TABLES for suffix in sources[kind].suffixes)
    folders = dict.fromkeys((home / path).parent for path in paths if not is_uri(path))
    tables = [
        _relative(str(path), home)
        for folder in folders
        if folder.is_dir() and os.access(folder, os.R_OK)
        for path in sorted(folder.iterdir())
        if path.name.endswith(suffixes) and path.is_file()
    ]
    return _found(tables, home, suffixes)


def _captions(
    home: Path,
    inputs: Sequence[Input],
    tables: Sequence[Input],
    sources: dict[str, type[FileSource]],
) -> dict[str, Any] | None:
    """The options of the table that has a column with the names of images; None if there is none."""
    suffixes = sources[IMAGES].suffixes
    images = [each for each in inputs if each.name.lower().endswith(suffixes)]
    names = {name for each in images for name in (each.below, each.below.rpartition("/")[2])}
    for table in tables:
        kind = next((kind for kind in TABLES if table.name.endswith(sources[kind].suffixes)), None)
        if kind is None or not table.size_bytes:
            continue
        try:
            source = sources[kind](kind=kind, path=(table.name,), text=(NO_COLUMN,))
            column, guessed = _naming(table, source, names)
        except EmbeddingPipelinesError:
            if table in inputs:
                raise
            continue  # beside the images, and perhaps none of their business
        if guessed is None:
            continue
        text = [name for name in guessed.text if name != column]
        metadata = {
            name: words
            for name, words in guessed.metadata.items()
            if name != column and column_name(name) not in OWN
        }
        options: dict[str, Any] = {"path": table.name, "file": column}
        return (
            options
            | ({"text": text} if text else {})
            | ({"metadata": metadata} if metadata else {})
        )
    return None


def _naming(table: Input, source: Source, names: AbstractSet[str]) -> tuple[str, Guess | None]:
    """The column of a table that holds these names, and what else is in it; None if none does."""
    with fetched([table]) as local:
        file = next(local)
        shares = {
            name: sum(plain_path(value) in names for value in values) / len(values)
            for name in _names(source, file)
            if (values := _values(source, name, file))
        }
        column = max(shares, key=shares.__getitem__, default="")
        is_it = shares.get(column, 0) >= HALF
        return column, _guess(source, [table.name], file) if is_it else None


def _guess_table(home: Path, path: str) -> Guess:
    """Of the one table of an SQLite file. Raises ConfigError if it has more, or no id."""
    tables = tables_of(home / path)
    if len(tables) != 1:
        raise ConfigError(
            f"{path} is a database with {len(tables)} tables: {', '.join(tables)}. Write the pipeline "
            f"file, with source: {{kind: sql, url: 'sqlite:///{path}', table: …, id: …}}."
        )
    first = SourceFile(tables[0], 1, (), home / path)
    options = {"url": f"sqlite:///{path}", "table": tables[0], "text": (NO_COLUMN,)}
    names = _names(Sql(id=NO_COLUMN, **options), first)
    guessed = _guess(Sql(id=names[0], **options), [], first)
    if guessed.id is None:
        raise ConfigError(
            f"No column of {tables[0]!r} in {path} looks like an id. Write the pipeline file, and "
            "name as source.id a column that is one."
        )
    return guessed


def _guess(source: Source, paths: list[str], first: SourceFile) -> Guess:
    if isinstance(source, FileSource) and source.usual_metadata:
        options = {"kind": source.kind, "path": source.path}
        prose = type(source).model_validate(options)
        documents = sum(batch.num_rows for batch in prose.read(first, _log()))
        return Guess(source.kind, paths, {}, documents, None, ["text"], dict(prose.usual_metadata))
    source, names = _columns(source, first)
    sample = {name: _values(source, name, first) for name in dict.fromkeys(names) if name}
    values = {name: texts for name, texts in sample.items() if any(texts)}
    rows = max(map(len, values.values()), default=0)
    if not rows:
        raise ConfigError(
            f"{first.name} has no rows to guess from{_first_problem(source, names, first)}. Name a "
            f"file that has some. {BY_HAND}"
        )
    options = source.model_dump(
        mode="json", exclude_defaults=True, exclude={"kind", "path", "text", "id", "metadata"}
    )
    missing = source.missing_words
    types = {name: _type_of(texts, missing) for name, texts in values.items()}
    key = _id_of(values, types)
    text = _text_of(values, types, key)
    unreadable = _rejections(source, text, {}, first)
    notes = [*_notes_on_id(values, key, first), *_notes_on_rows(unreadable)]
    metadata: dict[str, str] = {}
    omissions = {
        name: "has no value in the sample" if texts else "holds no text, number or time"
        for name, texts in sample.items()
        if name not in values
    }
    for name in values:
        if name in (key, *text):
            continue
        if reason := _why_omit(name, values[name], metadata):
            omissions[name] = reason
            continue
        wrong = _misfits(types[name], values[name], missing)
        for likely, allowed in ((types[name], wrong), ("string", []), ("list[string]", [])):
            rejected = _rejections(source, text, {name: likely}, first)
            if rejected is not None and len(rejected) <= len(unreadable or ()) + len(allowed):
                metadata[name] = likely
                notes += _notes_on_type(name, likely, allowed)
                notes += _notes_on_days(name, likely, _filled(values[name], missing))
                break
        else:
            omissions[name] = "cannot be read as a text"
    if omissions:
        reasons = "; ".join(f"{name!r} {why}" for name, why in omissions.items())
        notes.append(f"Left out of metadata: {reasons}.")
    unreadable = _rejections(source, text, metadata, first)
    count = len(unreadable or ()) + _repeated(values.get(key or "", []))
    if not source.allows(count, rows):
        notes.append(
            f"A run would stop: it would reject {counted(count, 'row')} of the first {rows:,}, and "
            f"source.max_rejected allows {source.max_rejected * 100:.4g}%. Mend the rows, or raise it."
        )
    return Guess(source.kind, paths, options, rows, key, text, metadata, notes)


def _why_omit(name: str, texts: Sequence[str], metadata: Collection[str]) -> str:
    """Why a column stays out of the metadata that there is; empty if it need not."""
    if column_name(name) in RESERVED:
        return "is a name that results have already; rename it in the file"
    if column_name(name) in map(column_name, metadata):
        return "has the name of another column in filters"
    if max(map(len, texts)) > MAX_METADATA_LETTERS:
        return f"holds more than {MAX_METADATA_LETTERS} characters"
    if len(metadata) == MAX_METADATA:
        return f"is one of more than {MAX_METADATA} columns"
    return ""


def _log() -> ReadLog:
    return ReadLog(reject=lambda _: None)


def name_of(files: Sequence[str]) -> str:
    """A pipeline's name, of the first file's or folder's."""
    stem = Path(re.sub(r"[*?\[].*", "", files[0]) or files[0]).name.split(".")[0]
    stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    name = name if name[:1].isalpha() else f"pipeline_{name}"
    name = name[:60].strip("_")
    return f"my_{name}" if keyword.iskeyword(name) or name in NOT_IN_DAGSTER else name


def write_guess(home: Path, path: Path, guessed: Guess, model: str | None) -> None:
    """Write a new pipeline file. Raises ConfigError if there is one, or for a wrong model."""
    text = guessed.pipeline(model)
    parse_pipeline(text, path.stem, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists. Choose another --name, or delete the file.") from None


def _found(paths: Sequence[str], home: Path, suffixes: tuple[str, ...]) -> list[Input]:
    """What is there of the paths."""
    inputs: list[Input] = []
    for path in paths:
        try:
            inputs += find([path], home, suffixes)
        except NoMatchError:
            if is_uri(path):  # it says what the bucket holds
                raise
    return inputs


def _relative(entry: str, home: Path) -> str:
    """An entry as a pipeline file names it; a shell's own folder may be another than the home."""
    if is_uri(entry):
        return entry
    path = Path.cwd() / os.path.expanduser(entry)
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
        for _ in source.read(file, _log()):
            pass  # in nested formats any record may be the first with a field
    except SourceError as error:
        if not error.columns:
            raise
        return list(error.columns)
    return []


def _records_of(file: SourceFile) -> str | None:
    """The path to the longest array of objects in a file that is one JSON object, else None."""
    if file.size_bytes > MAX_RECORD_BYTES or not file.name.endswith(".json"):
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
    log, texts = _log(), list[str]()
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


def _rejections(
    source: Source, text: list[str], metadata: dict[str, str], file: SourceFile
) -> list[Rejection] | None:
    """Those of the first rows that cannot be documents with these columns; None: there are no
    such columns."""
    rejections: list[Rejection] = []
    configured = _with(source, text=tuple(text), metadata=metadata)
    try:
        next(iter(configured.read(file, ReadLog(reject=rejections.append))), None)
    except SourceError:
        return None
    return [rejection for rejection in rejections if rejection.row <= SAMPLE_ROWS]


def _id_of(values: dict[str, list[str]], types: dict[str, str]) -> str | None:
    """A column whose values are short, there and all different; the first by name, then by place.

    Of a column that by its name or place is the id a few values may be doubled or empty.
    """

    def identifies(name: str, exceptions: float = 0) -> bool:
        texts = values[name]
        return _repeated(texts) <= exceptions and max(map(len, texts)) <= MAX_ID_LETTERS

    by_name = {name.lower(): name for name in reversed(values)}
    sure = [by_name[name] for name in SURE_ID_NAMES if name in by_name]
    likely = [by_name[name] for name in ID_NAMES if name in by_name]
    likely += [name for name in values if re.search(r"(_|\b)(id|key|code)$", name.lower())]
    placed = [
        name
        for place, name in enumerate(values)
        if not any(" " in text for text in values[name])
        and (types[name] == "string" or (place == 0 and types[name] == "int"))
    ]
    # One of three rows, two of six, and then one of a hundred.
    few = {name: max(len(values[name]) / 100, min(2, len(values[name]) / 3)) for name in sure}
    nearly = {name: len(values[name]) / 100 for name in (*likely, *placed[:1]) if name != "name"}
    return next(
        itertools.chain(
            (name for name in sure if identifies(name, few[name])),
            (name for name in (*likely, *placed) if identifies(name)),
            (name for name in nearly if identifies(name, nearly[name])),
        ),
        None,
    )


def _notes_on_id(values: dict[str, list[str]], key: str | None, file: SourceFile) -> list[str]:
    if key is None:
        return [
            f"No column looks like an id, so file and row are it (as in {f'{file.name}:2'!r}): "
            "inserting a row changes the ids of all after it. If a column is the id, name it as "
            "source.id."
        ]
    counts = Counter(values[key])
    empty = counts.pop("", 0)
    doubled = [value for value, count in counts.items() if count > 1]
    notes = []
    if doubled:
        notes.append(
            f"The id {key!r} is not unique: {_some(doubled)} stand{'s' * (len(doubled) == 1)} more "
            "than once. Runs reject all but one of such rows; source.duplicates decides which."
        )
    if empty:
        notes.append(f"The id {key!r} is empty in {counted(empty, 'row')}, which runs reject.")
    return notes


def _repeated(texts: Sequence[str]) -> int:
    """Values that are empty, or stand before."""
    return len(texts) - len({*texts} - {""})


def _notes_on_rows(unreadable: list[Rejection] | None) -> list[str]:
    if not unreadable:
        return []
    count, first = len(unreadable), unreadable[0]
    return [
        f"{counted(count, 'row')} of the sample cannot be read; runs reject such rows. The "
        f"first is row {first.row} of {first.file}: {' '.join(first.reason.split())}."
    ]


def _notes_on_type(name: str, kind: str, wrong: list[str]) -> list[str]:
    if not wrong:
        return []
    count = len(wrong)
    return [
        f"{name!r} is {kind} but for {count} value{'s' * (count != 1)}: "
        f"{_some(list(dict.fromkeys(wrong)))}. Runs reject {'these rows' if count > 1 else 'this row'}"
        ". Add what stands for no value to source.missing, or declare the column as string."
    ]


def _notes_on_days(name: str, kind: str, filled: list[str]) -> list[str]:
    days = [text for text in filled if OTHER_DAYS.fullmatch(text)]
    if kind != "string" or not days or len(days) < len(filled) * NEARLY_ALL:
        return []
    return [
        f"{name!r} holds days in another notation than 2026-01-31: {_some(days[:1])}. They stay "
        "text, which filters cannot order; to filter by time write them so in the file, and declare "
        "the column as date or timestamp."
    ]


def _some(values: list[str]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(repr, values[:SHOWN])) + more


def _text_of(values: dict[str, list[str]], types: dict[str, str], key: str | None) -> list[str]:
    """The columns that a reader would read, titles first."""
    words = {
        name: _words(values[name])
        for name, kind in types.items()
        if name != key and kind == "string"
    }
    text = [name for name in words if words[name] >= WORDS_OF_TEXT or name.lower() in TEXT_NAMES]
    if not text and words:
        text = [max(words, key=words.__getitem__)]
    if not text and key is not None and types[key] == "string":
        text = [key]
    if not text:
        raise ConfigError(
            f"None of the columns {', '.join(map(repr, values))} holds text, "
            f"so there is nothing to embed. {BY_HAND}"
        )
    return sorted(text, key=lambda name: name.lower() not in TITLE_NAMES)


def _words(texts: list[str]) -> float:
    """On average, of those that are not empty."""
    filled = [text for text in texts if text]
    return sum(len(text.split()) for text in filled) / len(filled)


# 31.1.2026, 1/31/26, 2026/01/31, with a time or without.
OTHER_DAYS = re.compile(
    r"(\d{1,2}([./-])\d{1,2}\2(\d{4}|\d\d)|\d{4}([./])\d{1,2}\4\d{1,2})([ T]\d{1,2}:\d\d.*)?"
)
TYPES: dict[str, Callable[[str], object]] = {
    "int": INT.fullmatch,
    "float": FLOAT.fullmatch,
    "bool": lambda text: text.lower() in ("true", "false"),
    "date": lambda text: len(text) == len("2026-01-31") and _is_time(date, text),
    "timestamp": lambda text: ":" in text and _is_time(datetime, text),
}


def _type_of(texts: Sequence[str], missing: AbstractSet[str]) -> str:
    """A type of metadata that takes all values, else one that takes nearly all."""
    filled = len(_filled(texts, missing))
    misfits = {kind: _misfits(kind, texts, missing) for kind in TYPES if filled}
    kind = min(misfits, key=lambda kind: len(misfits[kind]), default="string")
    wrong = misfits.get(kind, [])
    if len(wrong) > filled * (1 - NEARLY_ALL) or any(re.match(r"0\d", text) for text in wrong):
        return "string"  # 01234 is a code
    return kind


def _misfits(kind: str, texts: Sequence[str], missing: AbstractSet[str]) -> list[str]:
    """The values that this type does not take."""
    fits = TYPES.get(kind)
    return [text for text in _filled(texts, missing) if not fits(text)] if fits else []


def _filled(texts: Sequence[str], missing: AbstractSet[str]) -> list[str]:
    stripped = (text.strip() for text in texts)
    return [text for text in stripped if text and text.lower() not in missing]


def _is_time(kind: type[date], text: str) -> bool:
    try:
        kind.fromisoformat(text)
    except ValueError:
        return False
    return True
