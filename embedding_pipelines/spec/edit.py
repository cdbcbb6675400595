"""Changes single options of a pipeline file, and leaves every other byte of it as it is.

The places come from the parser that the files are read with, and only the text between them is
replaced. To load, change and dump the file again, even by a library that keeps comments, would cost
comments beside what is replaced and the user's own spacing.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.spec.load import is_json, parse_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec

Options = Mapping[tuple[str, ...], Any]  # place of an option, e.g. ("store", "index"), to its value

BEFORE = {"compression": "model", "optimized": "compression"}  # a new option stands behind this one


@contextlib.contextmanager
def edited(path: Path, options: Options, wanted: PipelineSpec) -> Iterator[None]:
    """The pipeline file with these options while the body runs, and from then on if the body ends
    well.

    If it raises, the file is put back as it was, unless somebody else has changed it meanwhile. A
    scalar where an option has to go into, such as `store: lancedb`, is replaced by a mapping of
    that option alone: say all of them.

    Raises ConfigError, and leaves the file as it is, if it would not become `wanted` by this.
    """
    before = path.read_bytes()
    text = before.decode("utf-8")
    for place, value in options.items():
        text = with_option(text, place, value)
    _refuse_other(path, text, wanted, options)
    after = text.encode("utf-8")
    _replace(path, after)
    try:
        yield
    except BaseException:
        if path.read_bytes() == after:
            _replace(path, before)
        raise


def with_option(text: str, place: tuple[str, ...], value: Any) -> str:
    """`text`, a pipeline file in YAML or JSON, with an option set to a plain value; JSON stays
    JSON.

    None takes the place of a value that is there, and is not written where there is none. Raises
    yaml.YAMLError if the text cannot be parsed.
    """
    as_json = is_json(text)
    bom = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(bom)
    node = _tree(text)
    for depth, key in enumerate(place):
        if key not in node.entries:
            missing = value
            for inner in reversed(place[depth + 1 :]):
                missing = {inner: missing}
            if not node.is_mapping:
                return bom + _with_value(text, node, _rendered({key: missing}, as_json))
            return bom + (text if value is None else _with_entry(text, node, key, missing, as_json))
        node = node.entries[key].value
    if node.scalar == value:
        return bom + text
    return bom + _with_value(text, node, _rendered(value, as_json))


@dataclass
class _Node:
    """A value and where its text stands: without the comments and white space behind it."""

    start: int
    end: int
    is_mapping: bool = False
    flow: bool = False
    scalar: str | None = None
    entries: dict[str, "_Entry"] = field(default_factory=dict)  # of a mapping


@dataclass
class _Entry:
    start: int  # of the key
    value: _Node


def _tree(text: str) -> _Node:
    events = yaml.parse(text.replace("\t", " ") if is_json(text) else text, Loader=yaml.SafeLoader)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            return _node(text, events, next(events))
    raise AssertionError("a text without a document was read as a pipeline before")


def _node(text: str, events: Iterator[yaml.Event], event: yaml.Event) -> _Node:
    start, end = _span(event)
    if not isinstance(event, yaml.CollectionStartEvent):
        value = event.value if isinstance(event, yaml.ScalarEvent) else None
        return _Node(start, start + len(text[start:end].rstrip()), scalar=value)
    node = _Node(start, start, isinstance(event, yaml.MappingStartEvent), bool(event.flow_style))
    while not isinstance(event := next(events), yaml.CollectionEndEvent):
        child = _node(text, events, event)
        if node.is_mapping:
            key, child = child, _node(text, events, next(events))
            node.entries[key.scalar or ""] = _Entry(key.start, child)
        node.end = child.end
    if node.flow:
        node.end = _span(event)[1]
    return node


def _span(event: yaml.Event) -> tuple[int, int]:
    assert event.start_mark is not None
    assert event.end_mark is not None
    return event.start_mark.index, event.end_mark.index


def _with_value(text: str, node: _Node, rendered: str) -> str:
    start = node.start
    before = text[:start].rstrip()
    if before.endswith(":"):  # on the key's own line, unless a comment stands between
        return f"{before} {rendered}{text[node.end :]}"
    return text[:start] + rendered + text[node.end :]


def _with_entry(text: str, node: _Node, key: str, value: Any, as_json: bool) -> str:
    names = list(node.entries)
    after = (
        node.entries[BEFORE[key] if BEFORE.get(key) in node.entries else names[-1]]
        if names
        else None
    )
    pair = f"{json.dumps(key) if as_json else key}: {_rendered(value, as_json)}"
    if after is None:
        return f"{text[: node.start]}{{{pair}}}{text[node.end :]}"
    if node.flow:
        space = text[len(text[: after.start].rstrip()) : after.start]
        space = space if "\n" in space else " "
        return f"{text[: after.value.end]},{space}{pair}{text[after.value.end :]}"
    indent = text[text.rfind("\n", 0, after.start) + 1 : after.start]
    line_end = text.find("\n", after.value.end)
    if line_end < 0:
        return f"{text}\n{indent}{pair}"
    newline = "\r\n" if text[line_end - 1] == "\r" else "\n"
    return f"{text[: line_end + 1]}{indent}{pair}{newline}{text[line_end + 1 :]}"


def _rendered(value: Any, as_json: bool) -> str:
    """A plain value in one line."""
    if as_json:
        return json.dumps(value, ensure_ascii=False, default=str)
    listed = yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return str(listed).strip()[1:-1]


def _refuse_other(path: Path, text: str, wanted: PipelineSpec, options: Options) -> None:
    """ConfigError unless `text` says just what `wanted` is: an anchor, say, may stand in what was
    replaced."""
    try:
        found, cause = parse_pipeline(text, path.stem, path.name), None
    except ConfigError as error:
        found, cause = None, error
    if found is None or found.model_dump() != wanted.model_dump():
        lines = [
            f"{'.'.join(place)}: {_rendered(value, False)}" for place, value in options.items()
        ]
        raise ConfigError(
            f"{path} cannot be changed without changing more than these options; put them in yourself and run the "
            f"pipeline: {'; '.join(lines)}"
        ) from cause


def _replace(path: Path, content: bytes) -> None:
    """In one rename; a link stays a link, and the permissions stay."""
    target = path.resolve()
    draft = target.with_name(f".{target.name}.tmp")
    try:
        draft.write_bytes(content)
        shutil.copymode(target, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
