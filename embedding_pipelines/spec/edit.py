"""Changes single options of a pipeline file; its comments, its order and all other lines stay.

ruamel.yaml edits the file. It writes some lines in its own way, so only those that the edit changes
are taken over from it.
"""

import contextlib
import difflib
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.files import replacing
from embedding_pipelines.spec.load import is_json, parse_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec

Options = Mapping[tuple[str, ...], Any]  # place of an option, e.g. ("store", "index"), to its value

REMOVED = object()  # in place of an option's value: it leaves the file

BEFORE = {
    "migration": "model",
    "compression": "model",
    "optimized": "compression",
}  # a new option stands behind this one
BOM = "\ufeff"
COMMENT = re.compile(r"(?:^|\s)(#.*?)\s*$")


@contextlib.contextmanager
def edit_pipeline(path: Path, options: Options, spec: PipelineSpec) -> Iterator[None]:
    """The pipeline file with these options while the body runs, and from then on if the body ends
    well.

    If it raises, the file is put back as it was, unless somebody else has changed it meanwhile. A
    scalar where an option has to go into, such as `store: lancedb`, is replaced by a mapping of
    that option alone: say all of them.

    Raises ConfigError, and leaves the file as it is, if it would not come to say what `spec` says.
    """
    before = path.read_bytes()
    after = _edit(path, before.decode("utf-8"), options, spec).encode("utf-8")
    _replace(path, after)
    try:
        yield
    except BaseException:
        if path.read_bytes() == after:
            _replace(path, before)
        raise


def _edit(path: Path, text: str, options: Options, spec: PipelineSpec) -> str:
    """The edited text; ConfigError unless it says what `spec` says."""
    cause: Exception | None = None
    try:
        after = with_options(text, options)
        if parse_pipeline(after, path.stem, path.name).model_dump() == spec.model_dump():
            return after
    except (ConfigError, YAMLError) as error:
        cause = error
    lines = [
        f"{'.'.join(place)}: {_render(value)}"
        for place, value in options.items()
        if value is not REMOVED
    ]
    lines += [f"without {'.'.join(place)}" for place, value in options.items() if value is REMOVED]
    raise ConfigError(
        f"{path} cannot be changed without changing more than these options; put them in yourself "
        f"and run the pipeline: {'; '.join(lines)}"
    ) from cause


def with_options(text: str, options: Options) -> str:
    """`text`, a pipeline file in YAML or JSON, with options set to plain values; JSON stays JSON.

    None takes the place of a value that is there, and is not written where there is none. Raises
    ruamel's YAMLError for a text that it cannot read or write.
    """
    bom = BOM if text.startswith(BOM) else ""
    text = text.removeprefix(BOM)
    data = _load(text)
    for place, value in options.items():
        _set(data, place, value)
    return bom + _merge(text, _dump(_load(text), text), _dump(data, text))


def _library() -> YAML:
    library = YAML()
    library.preserve_quotes = True
    library.width = sys.maxsize
    library.brace_single_entry_mapping_in_flow_sequence = True
    return library


def _load(text: str) -> CommentedMap:
    if is_json(text):
        data: CommentedMap = json.loads(text, object_pairs_hook=CommentedMap)
    else:
        data = _library().load(text)
    return data


def _dump(data: CommentedMap, like: str) -> str:
    """In the indentation of another text."""
    if is_json(like):
        indent = re.match(r"\s*\{[^\S\n]*\n([^\S\n]+)", like)
        return json.dumps(data, ensure_ascii=False, default=str, indent=indent and indent[1])
    output, library = io.StringIO(), _library()
    indent = re.search(r"^( +)[^\s#-]", like, re.MULTILINE)
    library.map_indent = len(indent[1]) if indent else 2
    library.dump(data, output)
    return output.getvalue()


def _set(data: CommentedMap, place: tuple[str, ...], value: Any) -> None:
    key, *rest = place
    if value is REMOVED:
        assert not rest
        data.pop(key, None)
        return
    if rest and isinstance(data.get(key), CommentedMap):
        _set(data[key], tuple(rest), value)
        return
    for name in reversed(rest):
        value = None if value is None else {name: value}
    if key in data and data[key] != value:
        data[key] = _library().load(_render(value))
        if key in data.ca.items:
            data.ca.items[key][3] = None  # comments between key and value: they go above both
    elif key not in data and value is not None:
        names = list(data)
        after = BEFORE.get(key)
        position = names.index(after) + 1 if after in names else len(names)
        data.insert(position, key, _library().load(_render(value)))


def _render(value: Any) -> str:
    """A plain value in one line of YAML."""
    listed = yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return str(listed).strip()[1:-1]


def _merge(text: str, old: str, new: str) -> str:
    """`text` with the lines that differ between `old`, the library's way to write it, and `new`.

    Comments in what is replaced stand above it then.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    lines, before, after = text.split(newline), old.split("\n"), new.split("\n")
    matches = difflib.SequenceMatcher(None, before, lines, autojunk=False).get_matching_blocks()
    place = {match.a + n: match.b + n for match in matches for n in range(match.size)}
    place |= {-1: -1, len(before): len(lines)}
    changes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for kind, start, end, new_start, new_end in reversed(changes):
        if kind == "equal":
            continue
        while end and not before[end - 1].partition("#")[0].strip():
            start, end = min(start, end - 1), end - 1  # what stands above the next option
        first, last = start, end
        while not {first - 1, first} & place.keys():  # the library writes these in its own way
            first -= 1
        while not {last - 1, last} & place.keys():
            last += 1
        to = place[last - 1] + 1 if last - 1 in place else place[last]
        at = place[first] if first in place else place[first - 1] + 1
        replaced = slice(to if first == last else at, to)
        comments = [match[1] for line in lines[replaced] if (match := COMMENT.search(line))]
        lost = [words for words in comments if not any(line.endswith(words) for line in after)]
        change = before[first:start] + after[new_start:new_end] + before[end:last]
        lines[replaced] = lost + change
    return newline.join(lines)


def _replace(path: Path, content: bytes) -> None:
    """In one rename; a link stays a link, and the permissions stay."""
    target = path.resolve()
    with replacing(target) as draft:
        draft.write_bytes(content)
        shutil.copymode(target, draft)
