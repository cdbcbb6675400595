"""Markdown files: a document for each section, with the headings above it.

A section reaches from a heading to the next one of any level. Its id is the file's name and the path
of headings, as in `docs/guide.md#Install > Linux`, so that what is inserted before it does not change
it; its text begins with that path. What stands before the first heading has the file's name for id.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
import yaml

from embedding_pipelines.extras import version_of
from embedding_pipelines.sources.as_json import as_json
from embedding_pipelines.sources.base import ReadLog, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.text import TextSource, list_suffixes, open_text, read_whole

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_VERSION = 1  # raise it when the same file gives other documents
_ARROW = " > "
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_LINE_END = re.compile("\r\n|\r")


@dataclass(frozen=True)
class Section:
    """A part of a file. `line`: of its heading, or of its first line, from 1; `path`: its heading
    after those above it, none of what stands before the first one."""

    line: int
    path: tuple[str, ...]
    body: str


class Markdown(TextSource):
    """One document per section; `source_row` is the line where it begins. Its columns are `id`,
    `text`, `heading` (the path), `title` (the file's) and the fields of YAML front matter.

    A heading with nothing but further headings below it is only a part of their paths.
    """

    kind: Literal["markdown"] = "markdown"
    suffixes: ClassVar[tuple[str, ...]] = list_suffixes(".md", ".markdown")
    usual_metadata: ClassVar[Mapping[str, str]] = {"heading": "string"}

    id: str | None = "id"

    @property
    def reader(self) -> str:
        return f"markdown/{_VERSION};markdown-it-py={version_of('markdown-it-py')}"

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read."""
        text = open_text(file, self.encoding, log)
        data = read_whole(text)
        fields = Fields(self, file, log, text.raw)
        try:
            content = _LINE_END.sub("\n", data.decode())
        except UnicodeDecodeError:
            yield from fields.reject(1, f"is not valid {text.encoding}", data)
            yield from fields.finish()
            return
        front, first = _front_matter(content, file, log)
        parts = sections(content.split("\n")[first - 1 :], first)
        titles = [part.path[0] for part in parts if len(part.path) == 1]
        title = next(iter(titles), None)
        ids: set[str] = set()
        for part in parts:
            name = f"{file.name}#{_ARROW.join(part.path)}" if part.path else file.name
            number, plain = 1, name
            while name in ids:
                number += 1
                name = f"{plain} ({number})"
            ids.add(name)
            heading = _ARROW.join(part.path)
            record = {"title": title} | front
            record["id"] = name
            record["heading"] = heading or None
            record["text"] = "\n\n".join(filter(None, (heading, part.body)))
            yield from fields.add(part.line, record, record["text"].encode(), len(part.body))
        yield from fields.finish()


def sections(lines: list[str], first: int = 1) -> list[Section]:
    """The sections of a text; `first` is the number of its first line."""
    from markdown_it import MarkdownIt

    blocks = MarkdownIt("commonmark").disable("inline")
    inline = MarkdownIt("commonmark")
    tokens = blocks.parse("\n".join(lines))
    heads: list[tuple[int, int, int, str]] = []  # line, line after it, level, words
    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            words = _words(inline, tokens[at + 1].content)
            heads.append((token.map[0], token.map[1], int(token.tag[1]), words))
    result: list[Section] = []
    start = heads[0][0] if heads else len(lines)
    preamble = "\n".join(lines[:start])
    if preamble.strip():
        blank = next(at for at, line in enumerate(lines) if line.strip())
        result.append(Section(first + blank, (), preamble.strip("\n")))
    path: list[tuple[int, str]] = []
    ends = [*heads[1:], (len(lines), 0, 0, "")][: len(heads)]
    for (line, after, level, words), (end, _, next_level, _) in zip(heads, ends, strict=True):
        path = [(other, name) for other, name in path if other < level] + [(level, words)]
        body = "\n".join(lines[after:end]).strip("\n")
        if body.strip() or next_level <= level:
            names = tuple(name for _, name in path if name)
            result.append(Section(first + line, names, body if body.strip() else ""))
    return result


def _words(inline: "MarkdownIt", text: str) -> str:
    """A heading without its markup."""
    (token,) = inline.parseInline(text)
    parts = [
        " " if child.type in ("softbreak", "hardbreak") else child.content
        for child in token.children or ()
        if child.type != "html_inline"
    ]
    return " ".join("".join(parts).split())


def _front_matter(content: str, file: SourceFile, log: ReadLog) -> tuple[dict[str, Any], int]:
    """The fields of the YAML at the beginning of a file, and the number of the line after it; what
    is no YAML is text."""
    match = _FRONT_MATTER.match(content)
    if match is None:
        return {}, 1
    problem = "is not a list of names and values"
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(match[1])):
            problem = "holds an alias"
        else:
            fields = yaml.safe_load(match[1])
            if fields is None or isinstance(fields, dict):
                return as_json(fields or {}), content.count("\n", 0, match.end()) + 1
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        problem = " ".join(str(error).split())
    log.notes.append(f"{file.name}: its front matter is read as text, for it {problem}")
    return {}, 1
