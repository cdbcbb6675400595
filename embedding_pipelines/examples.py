"""Writes example data that every machine with Python has, so that the first run downloads nothing.

data/stdlib/<letter>.jsonl     docstrings of Python's standard library, from its source
data/unicode/characters.csv    characters and their names, from Python's Unicode database
pipelines/*.yaml               the two pipelines over them, where the home folder lacks them

The same Python always writes the same bytes, and leaves alone a file that holds them already.
"""

import ast
import csv
import io
import json
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_pipelines.errors import SourceError
from embedding_pipelines.files import write_atomic

# Applications, grammars, generated text; distutils is deprecated and gone from Python 3.12 on.
_SKIPPED_MODULES = {"distutils", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
_NAMED = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ast.Module | ast.ClassDef | ast.If | ast.Try | ast.With | ast.ExceptHandler
_KINDS: dict[type, str] = {ast.Module: "module", ast.ClassDef: "class"}  # the rest are functions
_MENTION = re.compile(r"\b(\w+)\(\)|\bthe (\w+) function\b")
_SEE_FUNCTIONS, _SEE_PARAGRAPHS = 2, 2  # of the functions that a docstring refers to
_NUMBERED = ("HANGUL SYLLABLE ", "TANGUT COMPONENT-")  # thousands of names made by rule
_CATEGORIES = {  # Unicode's general categories that hold named characters
    "Lu": "Letter, uppercase", "Ll": "Letter, lowercase", "Lt": "Letter, titlecase",
    "Lm": "Letter, modifier", "Lo": "Letter, other",
    "Mn": "Mark, nonspacing", "Mc": "Mark, spacing combining", "Me": "Mark, enclosing",
    "Nd": "Number, decimal digit", "Nl": "Number, letter", "No": "Number, other",
    "Pc": "Punctuation, connector", "Pd": "Punctuation, dash", "Ps": "Punctuation, open",
    "Pe": "Punctuation, close", "Pi": "Punctuation, initial quote",
    "Pf": "Punctuation, final quote", "Po": "Punctuation, other", "Sm": "Symbol, math",
    "Sc": "Symbol, currency", "Sk": "Symbol, modifier", "So": "Symbol, other",
    "Zs": "Separator, space", "Zl": "Separator, line", "Zp": "Separator, paragraph",
    "Cf": "Other, format",
}  # fmt: skip


@dataclass(frozen=True)
class ExampleFile:
    """One example file after `write_examples`."""

    path: Path
    rows: int  # documents in it; 0 for a pipeline file
    changed: bool  # False: it held these bytes already
    skipped: tuple[str, ...] = ()  # unreadable source files that belong in it


def write_examples(home: Path) -> list[ExampleFile]:
    """Write the example data below `home`; SourceError if Python came without its source."""
    data = [*_write_stdlib(home / "data" / "stdlib"), _write_unicode(home / "data" / "unicode")]
    package = Path(__file__).parent
    shipped = package / "_pipelines"  # in an installed package
    if not shipped.is_dir():
        shipped = package.parent / "pipelines"  # in a source tree
    for name in ("stdlib.yaml", "unicode.yaml"):
        path = home / "pipelines" / name
        if not path.exists():
            data.append(_write(path, (shipped / name).read_bytes(), 0))
    return data


def list_modules(folder: Path) -> list[tuple[str, Path]]:
    """Full name and file of each module of the standard library in `folder`, by name, no tests."""
    modules = []
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        is_test = not {"test", "tests"}.isdisjoint(parts)
        if parts[0] in sys.stdlib_module_names - _SKIPPED_MODULES and not is_test:
            modules.append((".".join(parts).removesuffix(".__init__"), path))
    return sorted(modules)


def read_docstrings(source: bytes, module: str) -> Iterator[dict[str, Any]]:
    """The module and each class, function and method in it that has a docstring, in source order.

    A second definition of a name (a property's setter, the other branch of an `if`) is `name~2`.
    Functions within functions are left out: nobody can call them. Raises SyntaxError or ValueError
    if the source is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in somebody else's source
        tree = ast.parse(source)
    count: Counter[str] = Counter()
    nodes: dict[str, Any] = {}
    docs: dict[str, str] = {}
    for name, node in _definitions(tree, module):
        if doc := (ast.get_docstring(node) or "").strip():
            count[name] += 1
            unique = name if count[name] == 1 else f"{name}~{count[name]}"
            nodes[unique], docs[unique] = node, doc
    for name, doc in docs.items():
        node = nodes[name]
        summary, _, details = doc.partition("\n\n")
        yield {
            "name": name,
            "kind": _KINDS.get(type(node), "function"),
            "module": module,  # in full, as one imports it: "xml.dom.minidom"
            "line": getattr(node, "lineno", 1),
            "summary": summary,  # the docstring's first paragraph
            "see": "\n".join(_see(name, doc, module, docs)),
            "details": details.strip(),
        }


def _see(name: str, doc: str, module: str, docs: dict[str, str]) -> Iterator[str]:
    """What functions beside it do that a docstring refers to: "Metadata is copied with copystat()"
    says little to a reader, or a model, who does not know copystat.
    """
    words = dict.fromkeys(match[1] or match[2] for match in _MENTION.finditer(doc))
    scopes = dict.fromkeys((name.rpartition(".")[0], module))
    names = [f"{scope}.{word}" for word in words for scope in scopes]
    others = [other for other in names if other in docs and other != name]
    for other in others[:_SEE_FUNCTIONS]:
        paragraphs = docs[other].split("\n\n")[:_SEE_PARAGRAPHS]
        yield f"{other.rpartition('.')[2]}: {' '.join(' '.join(paragraphs).split())}"


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, Any]]:
    """The node under its dotted name if it can have a docstring, then the definitions in it."""
    if isinstance(node, ast.Module | _NAMED):
        yield name, node
    if isinstance(node, _BLOCKS):
        for child in ast.iter_child_nodes(node):
            own = f".{child.name}" if isinstance(child, _NAMED) else ""
            yield from _definitions(child, name + own)


def _write_stdlib(folder: Path) -> Iterator[ExampleFile]:
    """One file per first letter of the module's name, without leading underscores."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    lines: defaultdict[str, list[str]] = defaultdict(list)
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for module, path in list_modules(stdlib):
        letter = module.lstrip("_")[0].lower()
        try:
            documents = list(read_docstrings(path.read_bytes(), module))
            lines[letter] += [json.dumps(document) + "\n" for document in documents]
        except (SyntaxError, ValueError, OSError):
            skipped[letter].append(str(path))
    if not any(lines.values()):
        raise SourceError(
            f"{stdlib}: no documented Python source. Run a Python that comes with its source."
        )
    for letter in sorted({*lines, *skipped}):
        data = "".join(lines[letter]).encode()
        path = folder / f"{letter}.jsonl"
        yield _write(path, data, len(lines[letter]), tuple(skipped[letter]))


def list_characters() -> Iterator[tuple[str, str, str, str, str]]:
    """Code point, character, name, category and its two letters, without names that are numbers."""
    for number in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(number), "")
        if name and not name.endswith(f"-{number:04X}") and not name.startswith(_NUMBERED):
            code = unicodedata.category(chr(number))
            yield f"U+{number:04X}", chr(number), name, _CATEGORIES[code], code


def _write_unicode(folder: Path) -> ExampleFile:
    rows = list(list_characters())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ("code_point", "character", "name", "category", "category_code")
    writer.writerows([header, *rows])
    return _write(folder / "characters.csv", text.getvalue().encode(), len(rows))


def _write(path: Path, data: bytes, rows: int, skipped: tuple[str, ...] = ()) -> ExampleFile:
    """Replace a file in one rename, unless it holds these bytes already."""
    changed = not path.exists() or path.read_bytes() != data
    if changed:
        write_atomic(path, data)
    return ExampleFile(path, rows, changed, skipped)
